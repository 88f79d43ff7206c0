//! gRPC messages that hold frames.

use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::mesh::transport::frame::{Frame, FrameError};

/// Bytes that a stream takes from the operating system and gives to it at once, at most (a frame that is
/// larger goes in one piece).
const BUFFER: usize = 8 * 1024;
const YIELD: usize = 32 * 1024;

/// What goes out.
#[derive(Debug)]
pub(in crate::mesh::transport) enum Outgoing {
    Frame(Frame),
    /// What no frame encodes to.
    #[cfg(test)]
    Raw(bytes::Bytes),
}

/// Frames in, frames out. What is no frame comes in as an error of its own, so that it can be told from a
/// broken connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Frames;

impl Codec for Frames {
    type Encode = Outgoing;
    type Decode = Result<Frame, FrameError>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Frames {
    type Item = Outgoing;
    type Error = Status;

    fn encode(&mut self, item: Outgoing, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        match item {
            Outgoing::Frame(frame) => {
                to.reserve(frame.encoded_len());
                frame.encode(to);
            }
            #[cfg(test)]
            Outgoing::Raw(bytes) => bytes::BufMut::put_slice(to, &bytes),
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD)
    }
}

impl Decoder for Frames {
    type Item = Result<Frame, FrameError>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        Ok(Some(Frame::decode(from)))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD)
    }
}
