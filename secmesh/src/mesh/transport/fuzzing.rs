//! A door to the reader and the writer of frames, for the fuzz targets (`fuzz/`).

use tokio::runtime::Builder;

use super::frame::{self, FrameError};

/// What reading one frame came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// A frame: its kind's number and its body.
    Frame(u8, Vec<u8>),
    /// A length above the limit.
    Oversized,
    /// A kind that nobody knows, or a length of zero.
    Bad,
    /// The input ended.
    Ended,
}

/// Reads one frame off the front of `input`, as a session does, and writes it again: what was read, and the
/// bytes that were written if it was a frame.
pub fn read_and_write(input: &mut &[u8]) -> (Read, Vec<u8>) {
    let Ok(runtime) = Builder::new_current_thread().build() else {
        return (Read::Ended, Vec::new());
    };
    runtime.block_on(async {
        match frame::read(input).await {
            Ok((kind, body)) => {
                let mut written = Vec::new();
                // Writing to memory cannot fail.
                let _done = frame::write(&mut written, kind, &body).await.is_ok();
                (Read::Frame(kind as u8, body.to_vec()), written)
            }
            Err(FrameError::Oversized(_)) => (Read::Oversized, Vec::new()),
            Err(FrameError::Io(_)) => (Read::Ended, Vec::new()),
            Err(_) => (Read::Bad, Vec::new()),
        }
    })
}
