//! Where fields are in the running kernel's structures, read from its own type information (BTF,
//! Documentation/bpf/btf.rst).

use std::path::Path;

use crate::state::read_capped;

/// The running kernel's types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Types of kernels with everything built in have a tenth of this, bytes.
const MAX_SIZE: u64 = 64 * 1024 * 1024;
/// Structures within structures that are looked into.
const MAX_DEPTH: usize = 8;

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// Bytes of a type's head: name, kind and number of parts, size or type.
const HEAD: usize = 12;
/// Bytes of a member: name, type, offset.
const MEMBER: usize = 12;

/// Why offsets are not known.
#[derive(Debug, thiserror::Error)]
pub enum KernelTypesError {
    /// The kernel was built without them, or does not show them.
    #[error(
        "{VMLINUX}: {0}\n  remedy: a kernel with CONFIG_DEBUG_INFO_BTF, and sysfs mounted at /sys"
    )]
    Read(std::io::Error),
    /// They are not what they should be.
    #[error("{VMLINUX} is not understood")]
    Format,
    /// This kernel has no such field.
    #[error("this kernel's {structure} has no field {field}")]
    NoField {
        /// The structure.
        structure: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// The kernel's types, as they stand in the file, with the place of each.
pub(super) struct KernelTypes {
    bytes: Vec<u8>,
    strings: usize,
    /// Place of the type with this number less one.
    places: Vec<usize>,
}

impl KernelTypes {
    /// The running kernel's.
    pub(super) fn running() -> Result<Self, KernelTypesError> {
        let bytes = read_capped(Path::new(VMLINUX), MAX_SIZE)
            .map_err(|e| KernelTypesError::Read(std::io::Error::other(e.to_string())))?;
        Self::parse(bytes).ok_or(KernelTypesError::Format)
    }

    /// Understands type information; `None` if it is none, or has kinds that are not known.
    pub(super) fn parse(bytes: Vec<u8>) -> Option<Self> {
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let header = word(&bytes, 4)?;
        let start = header.checked_add(word(&bytes, 8)?)?;
        let end = start.checked_add(word(&bytes, 12)?)?;
        let strings = header.checked_add(word(&bytes, 16)?)?;
        let mut places = Vec::new();
        let mut at = start;
        while at < end {
            places.push(at);
            let info = word(&bytes, at.checked_add(4)?)?;
            let rest = parts(info)?;
            at = at.checked_add(HEAD)?.checked_add(rest)?;
        }
        (at == end).then_some(Self {
            bytes,
            strings,
            places,
        })
    }

    /// Offset of `field` in `structure`, bytes.
    pub(super) fn offset(
        &self,
        structure: &'static str,
        field: &'static str,
    ) -> Result<u32, KernelTypesError> {
        self.places
            .iter()
            .filter(|at| self.kind(**at) == Some(KIND_STRUCT))
            .filter(|at| self.is_named(**at, structure))
            .find_map(|at| self.member(*at, field, MAX_DEPTH))
            .ok_or(KernelTypesError::NoField { structure, field })
    }

    /// Offset of an integer in `structure`, if `field` is one and has `size` bytes.
    pub(super) fn integer(&self, structure: &str, field: &str, size: usize) -> Option<usize> {
        let at = self
            .places
            .iter()
            .copied()
            .filter(|at| self.kind(*at) == Some(KIND_STRUCT))
            .find(|at| self.is_named(*at, structure))?;
        let info = word(&self.bytes, at.checked_add(4)?)?;
        let first = at.checked_add(HEAD)?;
        (0..info & 0xffff).find_map(|n| {
            let member = first.checked_add(n.checked_mul(MEMBER)?)?;
            let kind = self.place(word(&self.bytes, member.checked_add(4)?)?)?;
            let bits = word(&self.bytes, member.checked_add(8)?)?;
            // Bit fields have their width in the upper byte, so they are none of these.
            (self.is_named(member, field)
                && self.kind(kind) == Some(KIND_INT)
                && word(&self.bytes, kind.checked_add(8)?)? == size
                && bits.is_multiple_of(8))
            .then_some(bits / 8)
        })
    }

    fn kind(&self, at: usize) -> Option<u32> {
        let info = u32::try_from(word(&self.bytes, at.checked_add(4)?)?).ok()?;
        Some((info >> 24) & 0x1f)
    }

    fn is_named(&self, at: usize, name: &str) -> bool {
        let text = word(&self.bytes, at)
            .and_then(|n| self.bytes.get(self.strings.checked_add(n)?..))
            .unwrap_or_default();
        text.strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    fn member(&self, at: usize, field: &str, depth: usize) -> Option<u32> {
        let info = word(&self.bytes, at.checked_add(4)?)?;
        let has_bit_fields = info >> 31 != 0;
        let first = at.checked_add(HEAD)?;
        for n in 0..info & 0xffff {
            let member = first.checked_add(n.checked_mul(MEMBER)?)?;
            let mut bits = word(&self.bytes, member.checked_add(8)?)?;
            if has_bit_fields {
                bits &= 0x00ff_ffff;
            }
            let offset = u32::try_from(bits / 8).ok()?;
            if self.is_named(member, field) {
                return Some(offset);
            }
            // Members of one without a name count as those of what it is in; randomised layouts have one.
            if self.is_named(member, "")
                && depth > 0
                && let Some(inner) = self.place(word(&self.bytes, member.checked_add(4)?)?)
                && matches!(self.kind(inner), Some(KIND_STRUCT | KIND_UNION))
                && let Some(within) = self.member(inner, field, depth.saturating_sub(1))
            {
                return offset.checked_add(within);
            }
        }
        None
    }

    fn place(&self, number: usize) -> Option<usize> {
        self.places.get(number.checked_sub(1)?).copied()
    }
}

/// Bytes that follow a type's head.
fn parts(info: usize) -> Option<usize> {
    let count = info & 0xffff;
    match (info >> 24) & 0x1f {
        // Pointers, forward declarations, names of types, qualifiers, functions, floats, tags of types.
        2 | 7..=12 | 16 | 18 => Some(0),
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => Some(4),
        // Arrays.
        3 => Some(12),
        // Enumerations and parameters.
        6 | 13 => count.checked_mul(8),
        // Structures, unions, sections, enumerations of 64 bits.
        4 | 5 | 15 | 19 => count.checked_mul(12),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_ne_bytes(four)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two types: an unnamed structure with `b` at byte 4, and `outer` with `a` at 0, it at 8, `c` at 16.
    fn sample(magic: u16) -> Vec<u8> {
        let strings = b"\0outer\0a\0b\0c\0";
        let structure = |name: u32, members: &[[u32; 3]]| {
            let info = (KIND_STRUCT << 24) | u32::try_from(members.len()).unwrap();
            let mut words = vec![name, info, 24];
            words.extend(members.iter().flatten());
            words
        };
        let mut types = structure(0, &[[9, 0, 32]]);
        types.extend(structure(1, &[[7, 0, 0], [0, 1, 64], [11, 0, 128]]));
        let length = u32::try_from(types.len() * 4).unwrap();
        let mut out = magic.to_ne_bytes().to_vec();
        out.extend([1, 0]);
        for n in [24, 0, length, length, u32::try_from(strings.len()).unwrap()] {
            out.extend(u32::to_ne_bytes(n));
        }
        out.extend(types.iter().flat_map(|n| n.to_ne_bytes()));
        out.extend(strings);
        out
    }

    #[test]
    fn fields_are_found_also_in_members_without_a_name() {
        let types = KernelTypes::parse(sample(MAGIC)).unwrap();
        assert_eq!(types.offset("outer", "a").unwrap(), 0);
        assert_eq!(types.offset("outer", "b").unwrap(), 12);
        assert_eq!(types.offset("outer", "c").unwrap(), 16);
        assert!(types.offset("outer", "d").is_err());
        assert!(types.offset("oute", "a").is_err());
    }

    #[test]
    fn integers_are_found_by_name_and_length() {
        let strings = b"\0outer\0a\0b\0";
        let mut types = vec![0, KIND_INT << 24, 8, 64, 0, KIND_INT << 24, 4, 32];
        types.extend([1, (KIND_STRUCT << 24) | 2, 16]);
        types.extend([7, 1, 64, 9, 2, 32]);
        let length = u32::try_from(types.len() * 4).unwrap();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for n in [24, 0, length, length, u32::try_from(strings.len()).unwrap()] {
            bytes.extend(u32::to_ne_bytes(n));
        }
        bytes.extend(types.iter().flat_map(|n: &u32| n.to_ne_bytes()));
        bytes.extend(strings);
        let types = KernelTypes::parse(bytes).unwrap();
        assert_eq!(types.integer("outer", "a", 8), Some(8));
        assert_eq!(types.integer("outer", "b", 4), Some(4));
        assert_eq!(types.integer("outer", "a", 4), None, "of another length");
        assert_eq!(types.integer("outer", "c", 4), None);
        assert_eq!(types.integer("inner", "a", 8), None);
    }

    #[test]
    fn cut_or_foreign_files_are_refused_without_a_panic() {
        assert!(KernelTypes::parse(sample(0x1234)).is_none());
        let whole = sample(MAGIC);
        for length in 0..whole.len() {
            if let Some(types) = KernelTypes::parse(whole.iter().take(length).copied().collect()) {
                drop(types.offset("outer", "c"));
            }
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0xff;
            if let Some(types) = KernelTypes::parse(broken) {
                drop(types.offset("outer", "b"));
            }
        }
    }
}
