//! What an earlier agent left pinned: ours as it is, ours in another shape, or somebody else's.

use std::{
    io,
    mem::offset_of,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::maps::{MapData, MapInfo};
use secmesh_common::{
    SCHEMA,
    block::{AllowEntry, BlockEntry},
    counters::Counter,
    list::GROUP6_SHIFT,
};
use tracing::warn;

use super::{
    DataplaneError, LoadOptions, PINNED_MAPS, bpf, cuckoo, guard,
    kernel_types::KernelTypes,
    lists::{Four, Nets4, Nets6, Six, buckets_of_half},
};

/// The oldest schema that is understood.
const OLDEST: u32 = 1;

/// What is pinned.
pub(super) enum Standing {
    /// Nothing of an agent.
    Nothing,
    /// Maps that this version and configuration can go on with.
    Ours,
    /// Maps whose content is understood, but of another schema, another size, or not all of them.
    Other(Box<OldSet>),
}

/// Part of a value that is taken over: where it stands in the old value and in ours, and its length, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub from: usize,
    pub to: usize,
    pub len: usize,
}

/// How a map's content is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carry {
    /// Block entries; those that have ended stay behind.
    Blocks,
    /// Entries with fields that are known by name.
    Allows,
    /// Bytes as they are, if what they mean has not changed since this schema.
    Bytes {
        /// The first schema with the keys, values and hashes of ours.
        since: u32,
    },
    /// Counters of the same names, and only once the old program has counted its last packet.
    Counters,
}

/// What is in WATCH4 and WATCH6 has been an address and an end from the beginning.
const WATCHES: Carry = Carry::Bytes { since: 1 };
/// Ports, cookies, and how [`secmesh_common::config::Config::table_seed`] makes the cookies' tags: as they are now
/// since schema 3. Whoever changes one of them writes the new schema here, besides raising [`SCHEMA`].
const COOKIES_SINCE: u32 = 3;
const COOKIES: Carry = Carry::Bytes {
    since: COOKIES_SINCE,
};

/// What is taken over; the rest the agent writes anew before the program is switched, or it starts empty: lists
/// come from the disk, guards from what is in the block maps, accounting and hot sources from the traffic.
pub(super) const CARRIED: &[(&str, Carry, &str)] = &[
    ("BLOCK4", Carry::Blocks, "max_blocks"),
    ("BLOCK6", Carry::Blocks, "max_blocks"),
    ("PREFIX4", Carry::Blocks, "max_prefixes"),
    ("PREFIX6", Carry::Blocks, "max_prefixes"),
    ("ALLOW4", Carry::Allows, ""),
    ("ALLOW6", Carry::Allows, ""),
    ("WATCH4", WATCHES, ""),
    ("WATCH6", WATCHES, ""),
    ("PORT", COOKIES, ""),
    ("PORT_LIMIT", COOKIES, ""),
    ("COOKIE_ADDRESS", COOKIES, ""),
    ("COOKIE_LISTENER", COOKIES, ""),
    ("COOKIE_FLOOD", COOKIES, ""),
    ("COOKIE_VERIFIED", COOKIES, ""),
    ("COUNTERS", Carry::Counters, ""),
];

/// A map of the old set, open for reading.
pub(super) struct OldMap {
    pub name: &'static str,
    pub carry: Carry,
    /// The setting that sizes it; empty if none does.
    pub setting: &'static str,
    pub map: MapData,
    pub key_size: usize,
    pub value_size: usize,
    pub max_entries: u32,
    pub parts: Vec<Part>,
}

impl OldMap {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}

/// Everything that is taken over.
pub(super) struct OldSet {
    pub schema: u32,
    pub mode: u32,
    pub enforce_until_ns: u64,
    /// What the tags of verified clients are hashed with; none if those are not taken over.
    pub table_seed: Option<u64>,
    pub maps: Vec<OldMap>,
    /// Maps whose content this version would not understand and does not need: they begin empty.
    pub anew: Vec<&'static str>,
    /// Why it cannot be gone on with as it is.
    pub why: String,
}

/// The maps whose sizes are configured, with the sizes that `options` ask for.
pub(super) fn sizes(options: &LoadOptions) -> [(&'static str, u32); 16] {
    let ranges = options.max_list_prefixes.saturating_mul(2).max(2);
    let buckets4 = cuckoo::buckets_for::<Four>(options.max_list_addresses);
    let buckets6 = cuckoo::buckets_for::<Six>(options.max_list_addresses);
    let guard = guard::words_for(options.max_list_addresses, options.max_list_prefixes);
    [
        ("BLOCK4", options.max_blocks),
        ("BLOCK6", options.max_blocks),
        ("PREFIX4", options.max_prefixes),
        ("PREFIX6", options.max_prefixes),
        ("GUARD4", guard),
        ("GUARD6", guard),
        ("LIST4", buckets4),
        ("LIST6", buckets6),
        ("SOONEST6", (buckets6 >> GROUP6_SHIFT) + 1),
        ("LISTED4", cuckoo::slots_of::<Four>(buckets4)),
        ("LISTED6", cuckoo::slots_of::<Six>(buckets6)),
        ("RANGE4", ranges),
        ("RANGE6", ranges),
        ("SEARCH6", ranges),
        (
            "NET4",
            2 * buckets_of_half::<Nets4>(options.max_list_prefixes),
        ),
        (
            "NET6",
            2 * buckets_of_half::<Nets6>(options.max_list_prefixes),
        ),
    ]
}

/// Looks at what is pinned in `dir`, and changes nothing.
///
/// # Errors
///
/// State of a newer schema, of one that is too old, or that says it is ours and is not.
pub(super) fn look(dir: &Path, options: &LoadOptions) -> Result<Standing, DataplaneError> {
    let config_path = dir.join("CONFIG");
    if !config_path.exists() {
        require_own_layout(dir)?;
        return Ok(Standing::Nothing);
    }
    let failed = |source: io::Error| DataplaneError::PinDir {
        dir: config_path.clone(),
        source,
    };
    let config = open(&config_path)?;
    let info = config.info().map_err(DataplaneError::Map)?;
    let mut value = vec![0u8; bytes(info.value_size())];
    bpf::look_up(config.fd().as_fd(), &0u32.to_ne_bytes(), &mut value).map_err(failed)?;
    // The schema is, and stays, the first word of the configuration.
    let schema = word(&value, 0).unwrap_or(u32::MAX);
    if schema == 0 {
        // An agent died before it wrote anything; a stamp comes before the first entry.
        require_own_layout(dir)?;
        return Ok(Standing::Ours);
    }
    if !(OLDEST..=SCHEMA).contains(&schema) {
        return Err(DataplaneError::Schema {
            found: schema,
            ours: SCHEMA,
            dir: dir.to_path_buf(),
        });
    }
    let why = if schema == SCHEMA {
        require_own_layout(dir)?;
        match difference(dir, options)? {
            None => return Ok(Standing::Ours),
            Some(why) => why,
        }
    } else {
        format!("schema {schema}, now {SCHEMA}")
    };
    let types = types_of(&config, &config_path)?;
    let field = |name, len| match &types {
        Some(types) => types.integer("Config", name, len),
        None if schema == SCHEMA => match name {
            "mode" => Some(offset_of!(secmesh_common::config::Config, mode)),
            "table_seed" => Some(offset_of!(secmesh_common::config::Config, table_seed)),
            _ => Some(offset_of!(secmesh_common::config::Config, enforce_until_ns)),
        },
        None => None,
    };
    let mode = field("mode", 4)
        .and_then(|at| word(&value, at))
        .ok_or_else(|| not_understood(&config_path, schema))?;
    let long = |name| {
        field(name, 8)
            .and_then(|at| value.get(at..at + 8)?.try_into().ok())
            .map(u64::from_ne_bytes)
    };
    let (maps, anew) = open_all(dir, schema)?;
    Ok(Standing::Other(Box::new(OldSet {
        schema,
        mode,
        enforce_until_ns: long("enforce_until_ns").unwrap_or(0),
        table_seed: long("table_seed").filter(|_| schema >= COOKIES_SINCE),
        maps,
        anew,
        why,
    })))
}

/// Why maps of our own schema do not do for these options.
fn difference(dir: &Path, options: &LoadOptions) -> Result<Option<String>, DataplaneError> {
    for (name, ..) in PINNED_MAPS {
        if !dir.join(name).exists() {
            return Ok(Some(format!("{name} is not there")));
        }
    }
    for (name, wanted) in sizes(options) {
        let found = info(&dir.join(name))?.max_entries();
        if found != wanted {
            return Ok(Some(format!("{name} has {found} entries, now {wanted}")));
        }
    }
    Ok(None)
}

/// Opens what is taken over, and names what is not.
fn open_all(dir: &Path, schema: u32) -> Result<(Vec<OldMap>, Vec<&'static str>), DataplaneError> {
    let (mut maps, mut anew) = (Vec::new(), Vec::new());
    for (name, carry, setting) in CARRIED {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        let map = open(&path)?;
        let info = map.info().map_err(DataplaneError::Map)?;
        let (key_size, value_size) = (bytes(info.key_size()), bytes(info.value_size()));
        let Some((_, our_key, our_value)) = PINNED_MAPS.iter().find(|(n, ..)| n == name) else {
            continue;
        };
        let types = match carry {
            Carry::Blocks | Carry::Allows | Carry::Counters => types_of(&map, &path)?,
            Carry::Bytes { .. } => None,
        };
        let types = types.as_ref();
        let same_sizes = (key_size, value_size) == (*our_key, *our_value);
        let parts = match carry {
            Carry::Blocks | Carry::Allows if key_size != *our_key => None,
            Carry::Blocks => fields(types, schema, "BlockEntry", BLOCK_FIELDS),
            Carry::Allows => fields(types, schema, "AllowEntry", ALLOW_FIELDS),
            Carry::Counters if key_size == *our_key => Some(counters(types, schema)),
            Carry::Bytes { since } if schema >= *since && same_sizes => Some(vec![Part {
                from: 0,
                to: 0,
                len: value_size,
            }]),
            // What is in them comes again by itself.
            Carry::Bytes { .. } | Carry::Counters => {
                anew.push(*name);
                continue;
            }
        };
        let parts = parts.filter(|parts| parts.iter().all(|p| p.from + p.len <= value_size));
        maps.push(OldMap {
            name,
            carry: *carry,
            setting,
            map,
            key_size,
            value_size,
            max_entries: info.max_entries(),
            parts: parts.ok_or_else(|| not_understood(&path, schema))?,
        });
    }
    Ok((maps, anew))
}

/// Where each of our counters is in the old values; those that there were not begin at zero.
fn counters(types: Option<&KernelTypes>, schema: u32) -> Vec<Part> {
    const EACH: usize = size_of::<u64>();
    Counter::ALL
        .iter()
        .enumerate()
        .filter_map(|(n, counter)| {
            let to = n * EACH;
            let from = match types {
                Some(types) => types.integer("Counters", counter.name(), EACH),
                None => (schema == SCHEMA).then_some(to),
            }?;
            Some(Part {
                from,
                to,
                len: EACH,
            })
        })
        .collect()
}

/// A field of ours: name, place, length, and whether an entry means nothing without it.
type Field = (&'static str, usize, usize, bool);

const BLOCK_FIELDS: &[Field] = &[
    ("expires_ns", offset_of!(BlockEntry, expires_ns), 8, true),
    ("rule", offset_of!(BlockEntry, rule), 4, true),
    ("flags", offset_of!(BlockEntry, flags), 4, true),
    ("hits", offset_of!(BlockEntry, hits), 8, false),
    ("bytes", offset_of!(BlockEntry, bytes), 8, false),
    (
        "first_hit_ns",
        offset_of!(BlockEntry, first_hit_ns),
        8,
        false,
    ),
    ("last_hit_ns", offset_of!(BlockEntry, last_hit_ns), 8, false),
];

const ALLOW_FIELDS: &[Field] = &[
    ("overrides", offset_of!(AllowEntry, overrides), 8, false),
    ("rule", offset_of!(AllowEntry, rule), 4, false),
    ("flags", offset_of!(AllowEntry, flags), 4, false),
];

/// Where our fields are in the old values, by the map's own type information; where there is none, values of our
/// schema are ours. `None` if one is missing that is needed.
fn fields(
    types: Option<&KernelTypes>,
    schema: u32,
    structure: &str,
    wanted: &[Field],
) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    for (name, to, len, needed) in wanted {
        let from = match types {
            Some(types) => types.integer(structure, name, *len),
            None if schema == SCHEMA => Some(*to),
            None => None,
        };
        match from {
            Some(from) => parts.push(Part {
                from,
                to: *to,
                len: *len,
            }),
            None if *needed => return None,
            None => {}
        }
    }
    Some(parts)
}

/// Refuses maps whose keys or values are not of our sizes.
fn require_own_layout(dir: &Path) -> Result<(), DataplaneError> {
    for (name, key_size, value_size) in PINNED_MAPS {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        let info = info(&path)?;
        let found = (info.key_size(), info.value_size());
        if (bytes(found.0), bytes(found.1)) != (*key_size, *value_size) {
            let ours = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
            return Err(DataplaneError::ForeignState {
                path,
                found,
                ours: (ours(*key_size), ours(*value_size)),
            });
        }
    }
    Ok(())
}

/// What a map says of its own layout.
fn types_of(map: &MapData, path: &Path) -> Result<Option<KernelTypes>, DataplaneError> {
    let bytes =
        bpf::type_information(map.fd().as_fd()).map_err(|source| DataplaneError::PinDir {
            dir: path.to_path_buf(),
            source,
        })?;
    Ok(bytes.and_then(KernelTypes::parse))
}

fn not_understood(path: &Path, schema: u32) -> DataplaneError {
    warn!(pin = %path.display(), schema, "an older version's map is not understood");
    DataplaneError::NotUnderstood {
        path: path.to_path_buf(),
        schema,
    }
}

fn open(path: &Path) -> Result<MapData, DataplaneError> {
    let fd = bpf::open_pin(path, true).map_err(|source| DataplaneError::PinDir {
        dir: PathBuf::from(path),
        source,
    })?;
    MapData::from_fd(fd).map_err(DataplaneError::Map)
}

fn info(path: &Path) -> Result<MapInfo, DataplaneError> {
    MapInfo::from_pin(path).map_err(DataplaneError::Map)
}

fn bytes(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_ne_bytes(four))
}
