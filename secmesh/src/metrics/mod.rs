//! What Prometheus scrapes: the text format, and a small server for it.

mod http;
mod text;

pub use self::{
    http::{Server, ServerCounters},
    text::{Kind, Text},
};

#[cfg(test)]
pub(crate) use self::text::tests;
