//! Reading the block maps from end to end without holding up whoever writes them.

use std::{
    net::IpAddr,
    os::fd::AsFd as _,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError};
use secmesh_common::block::{Addr4, Addr6, BlockEntry, Net4, Net6};
use tracing::warn;

use super::tables::{net4_prefix, net6_prefix};
use crate::addr::Prefix;

/// Entries handed over at a time.
pub const PAGE: usize = 1024;
/// Pages that wait to be taken; then the reader waits.
const PAGES_AHEAD: usize = 2;

/// What is in the maps at the time it is read: prefix and flags of each entry.
pub type Page = Vec<(Prefix, u32)>;

/// Handles of their own on the four block maps.
#[derive(Default)]
pub struct BlockLister {
    maps: Vec<(Kind, MapData)>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Exact4,
    Exact6,
    Prefix4,
    Prefix6,
}

impl BlockLister {
    /// `exact4`, `exact6`, `prefix4`, `prefix6`, as the loader made them. A handle that cannot be made is left
    /// out: what is in that map then goes unlisted, never wrongly listed.
    pub(super) fn new(maps: [&Map; 4]) -> Self {
        let kinds = [Kind::Exact4, Kind::Exact6, Kind::Prefix4, Kind::Prefix6];
        let handle = |map: &Map| -> Option<MapData> {
            let (Map::HashMap(data) | Map::LpmTrie(data)) = map else {
                return None;
            };
            let fd = data.fd().as_fd().try_clone_to_owned().ok()?;
            MapData::from_fd(fd).ok()
        };
        Self {
            maps: kinds
                .into_iter()
                .zip(maps)
                .filter_map(|(kind, map)| Some((kind, handle(map)?)))
                .collect(),
        }
    }

    /// Starts to read on a thread of its own; pages come until all is read.
    ///
    /// An entry that comes or goes meanwhile may be missed or listed although it is gone. Each map is read for
    /// at most twice as many entries as it has room: where a key is removed under the reader's feet, the
    /// kernel begins that map anew (`htab_map_get_next_key` in kernel/bpf/hashtab.c).
    pub fn start(&self) -> Receiver<Page> {
        let (sender, pages) = sync_channel(PAGES_AHEAD);
        let maps: Vec<(Kind, MapData)> = self
            .maps
            .iter()
            .filter_map(|(kind, data)| {
                let fd = data.fd().as_fd().try_clone_to_owned().ok()?;
                Some((*kind, MapData::from_fd(fd).ok()?))
            })
            .collect();
        let spawned = std::thread::Builder::new()
            .name("block-lister".to_owned())
            .spawn(move || {
                for (kind, data) in maps {
                    match read(kind, data, &sender) {
                        Ok(true) => {}
                        // Nobody waits any more.
                        Ok(false) => return,
                        Err(error) => warn!(%error, ?kind, "listing a block map"),
                    }
                }
            });
        if let Err(error) = spawned {
            // The sender is gone, so the receiver sees an end.
            warn!(%error, "no thread to list the block maps");
        }
        pages
    }
}

fn read(kind: Kind, data: MapData, to: &SyncSender<Page>) -> Result<bool, MapError> {
    let most = usize::try_from(data.info()?.max_entries())
        .unwrap_or(usize::MAX)
        .saturating_mul(2);
    Ok(match kind {
        Kind::Exact4 => send(
            HashMap::<_, Addr4, BlockEntry>::try_from(Map::HashMap(data))?
                .iter()
                .take(most)
                .flatten()
                .map(|(k, e)| (Prefix::host(IpAddr::from(k.addr)), e.flags)),
            to,
        ),
        Kind::Exact6 => send(
            HashMap::<_, Addr6, BlockEntry>::try_from(Map::HashMap(data))?
                .iter()
                .take(most)
                .flatten()
                .map(|(k, e)| (Prefix::host(IpAddr::from(k.addr)), e.flags)),
            to,
        ),
        Kind::Prefix4 => send(
            LpmTrie::<_, Net4, BlockEntry>::try_from(Map::LpmTrie(data))?
                .iter()
                .take(most)
                .flatten()
                .filter_map(|(k, e)| Some((net4_prefix(&k)?, e.flags))),
            to,
        ),
        Kind::Prefix6 => send(
            LpmTrie::<_, Net6, BlockEntry>::try_from(Map::LpmTrie(data))?
                .iter()
                .take(most)
                .flatten()
                .filter_map(|(k, e)| Some((net6_prefix(&k)?, e.flags))),
            to,
        ),
    })
}

fn send(entries: impl Iterator<Item = (Prefix, u32)>, to: &SyncSender<Page>) -> bool {
    let mut page = Page::with_capacity(PAGE);
    for entry in entries {
        page.push(entry);
        if page.len() >= PAGE && to.send(std::mem::take(&mut page)).is_err() {
            return false;
        }
    }
    to.send(page).is_ok()
}
