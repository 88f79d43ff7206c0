//! What happened: kernel events, captures and the system's own configuration, in one vocabulary.

pub mod capture;
pub mod flow;
pub mod listeners;
pub mod netinfo;
pub mod observation;
pub mod process;
pub mod vlans;
