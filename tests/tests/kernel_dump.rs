//! `bpftool map dump` of every map says by name what is in it: a person with nothing but bpftool can look.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::MapData;
use secmesh::dataplane::LoadOptions;
use secmesh_tests::kernel::{BPFFS, Kernel, isolated, options, tool};
use serde_json::Value;

/// Maps above this size are looked up in place of dumped whole; bpftool prints both with the same code.
const DUMPED_BYTES: u64 = 1 << 20;

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let text = tool("bpftool", &[&["-j"], arguments].concat())?;
    serde_json::from_str(&text).with_context(|| format!("bpftool {arguments:?} printed {text}"))
}

/// A map of the program, as bpftool describes it.
struct Map {
    id: String,
    name: String,
    kind: String,
    key: u64,
    value: u64,
    entries: u64,
}

impl Map {
    fn show(id: u32) -> Result<Self> {
        let id = id.to_string();
        let shown = bpftool(&["map", "show", "id", &id])?;
        let text = |name: &str| shown.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = |name: &str| shown.get(name).and_then(Value::as_u64).unwrap_or_default();
        Ok(Self {
            name: text("name").to_owned(),
            kind: text("type").to_owned(),
            key: number("bytes_key"),
            value: number("bytes_value"),
            entries: number("max_entries"),
            id,
        })
    }

    /// Bytes of an entry's key that every kind of map takes.
    fn first_key(&self) -> Vec<u8> {
        let mut key = vec![0; usize::try_from(self.key).unwrap_or(0)];
        // The prefix length of a trie comes first, little-endian; eight bits of 10.
        if self.kind == "lpm_trie"
            && let [length, _, _, _, address, ..] = key.as_mut_slice()
        {
            (*length, *address) = (8, 10);
        }
        key
    }

    /// Puts a value of bytes that are all different into the map: every field can be told from its neighbours.
    fn fill(&self) -> Result<Vec<u8>> {
        let value: Vec<u8> = (1..=self.value)
            .map(|n| (n % 251).to_le_bytes()[0])
            .collect();
        let words = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>();
        let (key_words, value_words) = (words(&self.first_key()), words(&value));
        let mut arguments = vec!["map", "update", "id", &self.id, "key"];
        arguments.extend(key_words.iter().map(String::as_str));
        arguments.push("value");
        arguments.extend(value_words.iter().map(String::as_str));
        tool("bpftool", &arguments)?;
        Ok(value)
    }

    /// The entry that [`Map::fill`] wrote, as bpftool prints it.
    fn printed(&self) -> Result<Value> {
        let key = self.first_key();
        let key_words: Vec<String> = key.iter().map(u8::to_string).collect();
        if (self.key + self.value) * self.entries > DUMPED_BYTES {
            let mut arguments = vec!["map", "lookup", "id", &self.id, "key"];
            arguments.extend(key_words.iter().map(String::as_str));
            return bpftool(&arguments);
        }
        let dump = bpftool(&["map", "dump", "id", &self.id])?;
        let expected: Vec<String> = key.iter().map(|byte| format!("0x{byte:02x}")).collect();
        dump.as_array()
            .context("a dump is a list")?
            .iter()
            .find(|entry| {
                let key = entry.get("key").and_then(Value::as_array);
                key.is_some_and(|key| {
                    key.iter()
                        .filter_map(Value::as_str)
                        .eq(expected.iter().map(String::as_str))
                })
            })
            .cloned()
            .with_context(|| format!("the dump of {} lacks the entry: {dump}", self.name))
    }

    /// The type of the map's values: its size, and name, offset (bits) and size of each integer in it, or
    /// none if the value is an integer itself.
    fn value_type(&self) -> Result<Vec<(String, u64, u64)>> {
        let btf = bpftool(&["btf", "dump", "map", "id", &self.id, "value"])?;
        // That is the value's own type; those of its fields are in the whole.
        let all = bpftool(&["btf", "dump", "map", "id", &self.id, "all"])?;
        let list = |of: &Value| of.get("types").and_then(Value::as_array).cloned();
        let (own, types) = list(&btf).zip(list(&all)).context("types")?;
        let number = |of: &Value, name: &str| of.get(name).and_then(Value::as_u64);
        let root = own.first().context("a value has a type")?;
        let members = root.get("members").and_then(Value::as_array).cloned();
        Ok(members
            .unwrap_or_default()
            .iter()
            .filter_map(|member| {
                let name = member.get("name")?.as_str()?.to_owned();
                let id = number(member, "type_id")?;
                let kind = types.iter().find(|t| number(t, "id") == Some(id))?;
                (kind.get("kind")?.as_str()? == "INT").then_some(())?;
                Some((name, number(member, "bits_offset")?, number(kind, "size")?))
            })
            .collect())
    }
}

fn integer(bytes: &[u8], bits_offset: u64, size: u64) -> Option<u64> {
    let from = usize::try_from(bits_offset / 8).ok()?;
    let field = bytes.get(from..from + usize::try_from(size).ok()?)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    )
}

/// Checks one map; gives how many fields were compared.
fn check(map: &Map) -> Result<usize> {
    let value = map.fill()?;
    let entry = map.printed()?;
    let formatted = entry
        .get("formatted")
        .with_context(|| format!("{} is printed as bytes only: {entry}", map.name))?;
    let key = formatted.get("key").context("a key")?;
    let shown = match formatted.get("values").and_then(Value::as_array) {
        // One per CPU; the update wrote the same for all.
        Some(values) => values.first().and_then(|first| first.get("value")),
        None => formatted.get("value"),
    };
    let shown = shown.with_context(|| format!("{}: no value in {formatted}", map.name))?;
    ensure!(
        key.is_object() || key.is_u64(),
        "{}: a key without names: {key}",
        map.name
    );
    if !shown.is_object() {
        ensure!(
            shown.as_u64() == integer(&value, 0, map.value),
            "{}: {shown} is not what was written: {value:?}",
            map.name
        );
        return Ok(1);
    }
    let fields = map.value_type()?;
    for (name, offset, size) in &fields {
        let (read, written) = (shown.get(name), integer(&value, *offset, *size));
        ensure!(
            read.and_then(Value::as_u64) == written && written.is_some(),
            "{}: {name} is printed as {read:?}, and is {written:?}",
            map.name
        );
    }
    // A value of nothing but structures (a bucket of hosts) has names inside.
    let names = shown.to_string().matches("\":").count();
    ensure!(names >= 1, "{}: no names in {shown}", map.name);
    Ok(fields.len())
}

#[test]
#[ignore = "needs root: cargo xtask test runs it"]
fn every_map_is_printed_with_the_names_of_its_fields_and_their_values() -> Result<()> {
    isolated(|| {
        let pins = PathBuf::from(BPFFS).join("dump");
        let mut kernel = Kernel::load(&LoadOptions {
            pin_dir: Some(pins.clone()),
            ..options()
        })?;
        // Those that the program uses, and those that are pinned for other programs of the object.
        let used = kernel.dataplane.program()?.info()?.map_ids()?;
        let mut ids: BTreeSet<u32> = used
            .context("the kernel lists a program's maps")?
            .into_iter()
            .collect();
        for pin in std::fs::read_dir(&pins)?.flatten() {
            ids.insert(MapData::from_pin(pin.path())?.info()?.id());
        }
        let (mut looked_at, mut fields) = (Vec::new(), 0);
        for id in ids {
            let map = Map::show(id)?;
            match map.kind.as_str() {
                // Records that were read are gone: there is nothing to dump. Constants are frozen.
                "ringbuf" => continue,
                _ if map.name.starts_with('.') || map.name.contains(".rodata") => continue,
                "hash" | "lpm_trie" | "array" | "percpu_array" | "lru_hash" | "percpu_hash"
                | "lru_percpu_hash" => {}
                other => bail!("{} is a {other}: teach this test to look into it", map.name),
            }
            fields += check(&map).with_context(|| format!("the map {}", map.name))?;
            looked_at.push(map.name);
        }
        looked_at.sort();
        println!("{fields} fields of {looked_at:?}");
        ensure!(fields > 60, "only {fields} fields were compared");
        for name in [
            "BLOCK4", "BLOCK6", "PREFIX4", "ALLOW6", "CONFIG", "COUNTERS", "SOURCES",
        ] {
            ensure!(
                looked_at.iter().any(|n| n == name),
                "{name} is not among {looked_at:?}"
            );
        }
        Ok(())
    })
}
