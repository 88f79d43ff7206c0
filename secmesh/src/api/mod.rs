//! The agent's local interface: requests and answers over a Unix socket.
//!
//! One JSON object per line in each direction, one request per connection. The socket is in a directory
//! of its own with mode 0700 and has mode 0600: whoever may talk to the agent is root already.

pub mod client;
mod decisions;
mod epochs;
pub mod lists;
pub mod server;
pub mod trust;
pub mod types;

/// Longest request or answer line, bytes. Answers are lists that are bounded by their own limits.
pub const MAX_LINE: usize = 64 << 20;
/// Longest request line, bytes.
pub const MAX_REQUEST: usize = 64 << 10;
