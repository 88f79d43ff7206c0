//! A door to the reader and the writer of frames, for the fuzz targets (`fuzz/`).

use super::frame::{Frame, FrameError};

/// What reading one frame came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// A frame: its kind's number and its body.
    Frame(u8, Vec<u8>),
    /// More bytes than the limit.
    Oversized,
    /// A kind that nobody knows, or bytes that no encoder writes.
    Bad,
}

/// Reads the gRPC message `input`, as a session does, and writes it again: what was read, and the bytes that
/// were written if it was a frame.
pub fn read_and_write(mut input: &[u8]) -> (Read, Vec<u8>) {
    match Frame::decode(&mut input) {
        Ok(frame) => {
            let mut written = Vec::new();
            frame.encode(&mut written);
            (Read::Frame(frame.kind as u8, frame.body.to_vec()), written)
        }
        Err(FrameError::Oversized) => (Read::Oversized, Vec::new()),
        Err(_) => (Read::Bad, Vec::new()),
    }
}
