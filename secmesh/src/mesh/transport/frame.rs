//! Frames: a length, a kind, a body.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::mesh::ids::MeshId;

/// Largest body of a frame, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// Version of what is spoken over a connection.
const PROTOCOL: u16 = 1;
const HELLO: usize = 2 + 32;

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
    #[error("a frame of {0} bytes is over the limit of {MAX_BODY}")]
    Oversized(u32),
    #[error("a frame of an unknown or unexpected kind, or with a wrong body")]
    Bad,
    #[error("the peer speaks protocol version {0}, this node {PROTOCOL}")]
    Version(u16),
    #[error("the peer belongs to another mesh")]
    Mesh,
}

/// Reads one frame. Memory is taken only after the length was checked.
pub(super) async fn read<R: AsyncRead + Unpin>(
    stream: &mut R,
) -> Result<(Kind, Bytes), FrameError> {
    let length = stream.read_u32().await?;
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if size > MAX_BODY + 1 {
        return Err(FrameError::Oversized(length));
    }
    if size == 0 {
        return Err(FrameError::Bad);
    }
    let kind = Kind::from_byte(stream.read_u8().await?).ok_or(FrameError::Bad)?;
    let mut body = vec![0; size - 1];
    stream.read_exact(&mut body).await?;
    Ok((kind, body.into()))
}

/// Writes one frame; the caller has checked the size, and flushes.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    stream: &mut W,
    kind: Kind,
    body: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(body.len() + 1).map_err(io::Error::other)?;
    stream.write_u32(length).await?;
    stream.write_u8(kind as u8).await?;
    stream.write_all(body).await
}

pub(super) async fn write_hello<W: AsyncWrite + Unpin>(
    stream: &mut W,
    mesh: &MeshId,
) -> io::Result<()> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    body.extend_from_slice(mesh.as_bytes());
    write(stream, Kind::Hello, &body).await?;
    stream.flush().await
}

pub(super) async fn read_hello<R: AsyncRead + Unpin>(
    stream: &mut R,
    mesh: &MeshId,
) -> Result<(), FrameError> {
    let (Kind::Hello, body) = read(stream).await? else {
        return Err(FrameError::Bad);
    };
    let (version, theirs) = body.split_first_chunk().ok_or(FrameError::Bad)?;
    // The version first: another version's Hello may look different after it.
    let version = u16::from_be_bytes(*version);
    if version != PROTOCOL {
        return Err(FrameError::Version(version));
    }
    if body.len() != HELLO {
        return Err(FrameError::Bad);
    }
    if theirs != mesh.as_bytes() {
        return Err(FrameError::Mesh);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = block(read(&mut bytes.as_slice()));
            let _ = block(read_hello(&mut bytes.as_slice(), &MeshId([1; 32])));
        }

        #[test]
        fn what_is_written_is_read(body in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut bytes = Vec::new();
            block(write(&mut bytes, Kind::Message, &body)).unwrap();
            let (kind, read) = block(read(&mut bytes.as_slice())).unwrap();
            prop_assert_eq!((kind, &read[..]), (Kind::Message, &body[..]));
        }
    }

    #[test]
    fn limits_hold() {
        let mut most = (u32::try_from(MAX_BODY).unwrap() + 1)
            .to_be_bytes()
            .to_vec();
        most.push(2);
        most.resize(most.len() + MAX_BODY, 7);
        assert_eq!(block(read(&mut most.as_slice())).unwrap().1.len(), MAX_BODY);
        let more = (u32::try_from(MAX_BODY).unwrap() + 2).to_be_bytes();
        assert!(matches!(
            block(read(&mut more.as_slice())),
            Err(FrameError::Oversized(_))
        ));
        assert!(matches!(
            block(read(&mut [0u8; 9].as_slice())),
            Err(FrameError::Bad)
        ));
    }
}
