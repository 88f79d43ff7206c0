//! Frames: a kind and a body, and how one stands in a gRPC message.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::mesh::ids::MeshId;

/// Largest body of a frame, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// Largest gRPC message: field key, length (three bytes hold two million), kind, body.
pub(super) const MAX_ENCODED: usize = 1 + 3 + 1 + MAX_BODY;
/// Version of what is spoken over a connection.
const PROTOCOL: u16 = 2;
const HELLO: usize = 2 + 32;
/// Field 1, length-delimited: what protobuf writes before `bytes data = 1`.
const DATA: u8 = 0x0a;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Hello = 1,
    Message = 2,
    JoinRequest = 3,
    JoinReply = 4,
    Ping = 5,
    Pong = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Hello,
            Self::Message,
            Self::JoinRequest,
            Self::JoinReply,
            Self::Ping,
            Self::Pong,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("a frame is over the limit of {MAX_BODY} bytes")]
    Oversized,
    #[error("a frame of an unknown or unexpected kind, or with a wrong body")]
    Bad,
    #[error("the peer speaks protocol version {0}, this node {PROTOCOL}")]
    Version(u16),
    #[error("the peer belongs to another mesh")]
    Mesh,
    #[error("members talk through another carrier here")]
    Carrier,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) body: Bytes,
}

impl Frame {
    pub(super) fn new(kind: Kind, body: impl Into<Bytes>) -> Self {
        Self {
            kind,
            body: body.into(),
        }
    }

    /// The first frame of a session: what is spoken, and for which mesh.
    pub(super) fn hello(mesh: &MeshId) -> Self {
        let mut body = BytesMut::with_capacity(HELLO);
        body.put_u16(PROTOCOL);
        body.put_slice(mesh.as_bytes());
        Self::new(Kind::Hello, body)
    }

    /// Whether this is the Hello of a peer of `mesh`.
    pub(super) fn check_hello(&self, mesh: &MeshId) -> Result<(), FrameError> {
        if self.kind != Kind::Hello {
            return Err(FrameError::Bad);
        }
        let (version, theirs) = self.body.split_first_chunk().ok_or(FrameError::Bad)?;
        // The version first: another version's Hello may look different after it.
        let version = u16::from_be_bytes(*version);
        if version != PROTOCOL {
            return Err(FrameError::Version(version));
        }
        if self.body.len() != HELLO {
            return Err(FrameError::Bad);
        }
        if theirs != mesh.as_bytes() {
            return Err(FrameError::Mesh);
        }
        Ok(())
    }

    /// Bytes that [`Frame::encode`] writes.
    pub(super) fn encoded_len(&self) -> usize {
        let data = self.body.len().saturating_add(1);
        let length = match data {
            0..0x80 => 1,
            0x80..0x4000 => 2,
            _ => 3,
        };
        data.saturating_add(length).saturating_add(1)
    }

    /// Writes the gRPC message `Frame { bytes data = 1 }`; the caller has checked the size of the body.
    pub(super) fn encode(&self, to: &mut impl BufMut) {
        to.put_u8(DATA);
        let mut length = self.body.len().saturating_add(1);
        while length >= 0x80 {
            to.put_u8(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        to.put_u8(u8::try_from(length).unwrap_or(0));
        to.put_u8(self.kind as u8);
        to.put_slice(&self.body);
    }

    /// Reads a gRPC message, all of it. Stricter than protobuf: one field, once, its length in the
    /// shortest form.
    pub(super) fn decode(from: &mut impl Buf) -> Result<Self, FrameError> {
        if from.remaining() > MAX_ENCODED {
            return Err(FrameError::Oversized);
        }
        if from.try_get_u8().ok() != Some(DATA) {
            return Err(FrameError::Bad);
        }
        let mut length = 0usize;
        for shift in [0, 7, 14] {
            let byte = from.try_get_u8().map_err(|_| FrameError::Bad)?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 != 0 {
                // Goes on; a fourth byte would be over any limit, and is met by the comparison below.
                continue;
            }
            if byte == 0 && shift > 0 {
                return Err(FrameError::Bad);
            }
            break;
        }
        if length == 0 || length != from.remaining() {
            return Err(FrameError::Bad);
        }
        if length > MAX_BODY + 1 {
            return Err(FrameError::Oversized);
        }
        let kind = from.try_get_u8().ok().and_then(Kind::from_byte);
        let kind = kind.ok_or(FrameError::Bad)?;
        let body = from.copy_to_bytes(from.remaining());
        Ok(Self { kind, body })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(kind: Kind, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let frame = Frame::new(kind, body.to_vec());
        frame.encode(&mut bytes);
        assert_eq!(bytes.len(), frame.encoded_len());
        bytes
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_have_one_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(frame) = Frame::decode(&mut bytes.as_slice()) {
                prop_assert_eq!(encoded(frame.kind, &frame.body), bytes);
                let _ = frame.check_hello(&MeshId([1; 32]));
            }
        }

        #[test]
        fn what_is_written_is_read(body in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let bytes = encoded(Kind::Message, &body);
            let read = Frame::decode(&mut bytes.as_slice()).unwrap();
            prop_assert_eq!((read.kind, &read.body[..]), (Kind::Message, &body[..]));
        }
    }

    #[test]
    fn limits_hold() {
        for length in [0, 1, 126, 127, 128, 16_382, 16_383, 16_384, MAX_BODY] {
            let bytes = encoded(Kind::Message, &vec![7; length]);
            assert_eq!(
                Frame::decode(&mut bytes.as_slice()).unwrap().body.len(),
                length
            );
        }
        let more = encoded(Kind::Message, &vec![7; MAX_BODY + 1]);
        assert!(matches!(
            Frame::decode(&mut more.as_slice()),
            Err(FrameError::Oversized)
        ));
        for bad in [
            &[][..],
            &[0x0a],
            &[0x0a, 0],
            &[0x0a, 1, 99],
            &[0x0a, 2, 2],
            // Another field; a length that could be shorter; something behind the field; no end.
            &[0x12, 1, 5],
            &[0x0a, 0x81, 0, 5],
            &[0x0a, 1, 5, 0],
            &[0x0a, 0x81, 0x80, 0x80, 0, 5],
        ] {
            assert!(
                matches!(Frame::decode(&mut &bad[..]), Err(FrameError::Bad)),
                "{bad:?}"
            );
        }
    }
}
