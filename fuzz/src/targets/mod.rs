//! The targets.

mod accounting;
mod api_request;
mod capture;
mod config;
mod evidence;
mod host_tables;
mod ledger;
mod limits;
mod lists;
mod map_codecs;
mod mesh;
mod packet;
mod prefix;
mod ticket;

use crate::bound::Bound;

/// One thing that is fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line; what it checks is in `targets.txt`.
    pub name: &'static str,
    /// Panics when a property does not hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with: good ones of every kind.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How much memory an input may make it take, the target's own included.
    pub memory: Bound,
}

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    fixed: usize,
    per_byte: usize,
) -> Target {
    Target {
        name,
        run,
        seeds,
        memory: Bound { fixed, per_byte },
    }
}

/// All of them, in the order of `targets.txt`.
pub const TARGETS: &[Target] = &[
    target("packet", packet::run, packet::seeds, 1 << 10, 4),
    target(
        "accounting",
        accounting::run,
        accounting::seeds,
        4 << 10,
        64,
    ),
    target("limits", limits::run, limits::seeds, 1 << 10, 4),
    target("map_codecs", map_codecs::run, map_codecs::seeds, 4 << 10, 8),
    target(
        "host_tables",
        host_tables::run,
        host_tables::seeds,
        128 << 10,
        64,
    ),
    target("lists", lists::run, lists::seeds, 2 << 20, 1 << 10),
    target("config", config::run, config::seeds, 256 << 10, 512),
    target("capture", capture::run, capture::seeds, 1 << 20, 64),
    target(
        "mesh_message",
        mesh::message,
        mesh::message_seeds,
        4 << 10,
        32,
    ),
    target("mesh_vote", mesh::vote, mesh::vote_seeds, 4 << 10, 16),
    target(
        "mesh_certificate",
        mesh::certificate,
        mesh::certificate_seeds,
        16 << 10,
        16,
    ),
    target(
        "mesh_evidence",
        evidence::run,
        evidence::seeds,
        32 << 10,
        64,
    ),
    target("mesh_join", mesh::join, mesh::join_seeds, 8 << 10, 32),
    target(
        "mesh_genesis",
        mesh::genesis,
        mesh::genesis_seeds,
        4 << 10,
        16,
    ),
    target("mesh_epoch", mesh::epoch, mesh::epoch_seeds, 16 << 10, 32),
    target("mesh_frame", mesh::frame, mesh::frame_seeds, 160 << 10, 8),
    target(
        "mesh_envelope",
        mesh::envelope,
        mesh::envelope_seeds,
        160 << 10,
        8,
    ),
    target("ledger", ledger::run, ledger::seeds, 512 << 10, 64),
    target(
        "ledger_note",
        ledger::note,
        ledger::note_seeds,
        16 << 10,
        32,
    ),
    target("prefix", prefix::run, prefix::seeds, 4 << 10, 32),
    target("ticket", ticket::run, ticket::seeds, 64 << 10, 16),
    target(
        "api_request",
        api_request::run,
        api_request::seeds,
        16 << 10,
        64,
    ),
];
