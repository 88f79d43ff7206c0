//! Writes the archive that Linux unpacks as its first file system: the "newc" format of cpio
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// File types and modes (`S_IFMT`, include/uapi/linux/stat.h).
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: std::collections::BTreeSet<String>,
    inode: u32,
}

/// A file that does not fit the format, whose sizes have 32 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge;

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a file of 4 GiB or more does not fit into a cpio archive")
    }
}

impl std::error::Error for TooLarge {}

impl Archive {
    /// Puts an executable file in, and the folders above it. `path` is absolute.
    ///
    /// # Errors
    /// When it is too large for the format.
    pub fn program(&mut self, path: &str, content: &[u8]) -> Result<(), TooLarge> {
        self.parents(path)?;
        self.entry(path, PROGRAM, (0, 0), content)
    }

    /// Puts an empty folder in, and the folders above it.
    ///
    /// # Errors
    /// Never for a name of ordinary length.
    pub fn folder(&mut self, path: &str) -> Result<(), TooLarge> {
        self.parents(path)?;
        if self.folders.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, (0, 0), &[])?;
        }
        Ok(())
    }

    /// Puts a character device in, and the folders above it.
    ///
    /// # Errors
    /// Never for a name of ordinary length.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<(), TooLarge> {
        self.parents(path)?;
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Ends the archive and gives its bytes.
    ///
    /// # Errors
    /// Never: the trailer is empty.
    pub fn finish(mut self) -> Result<Vec<u8>, TooLarge> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn parents(&mut self, path: &str) -> Result<(), TooLarge> {
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
            let above = path.get(..at).unwrap_or_default();
            if self.folders.insert(above.to_owned()) {
                self.entry(above, DIRECTORY, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> Result<(), TooLarge> {
        let name = path.trim_start_matches('/');
        self.inode += 1;
        let links = 1;
        let size = u32::try_from(content.len()).map_err(|_| TooLarge)?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| TooLarge)?;
        self.bytes.extend_from_slice(b"070701");
        // Owner, group and time are zero, so that the same files make the same bytes.
        for field in [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ] {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    /// To the next multiple of four.
    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive: name, mode, device minor, content.
    fn read(bytes: &[u8]) -> Vec<(String, u32, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(at % 4, 0);
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let from = at + 6 + 8 * n;
                let text = std::str::from_utf8(&bytes[from..from + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name_at = at + 110;
            let name = &bytes[name_at..name_at + name_size - 1];
            assert_eq!(bytes[name_at + name_size - 1], 0);
            let content_at = (name_at + name_size).next_multiple_of(4);
            let name = String::from_utf8(name.to_vec()).unwrap();
            if name == TRAILER {
                assert_eq!(content_at, bytes.len());
                return entries;
            }
            let content = bytes[content_at..content_at + size].to_vec();
            entries.push((name, field(1), field(10), content));
            at = (content_at + size).next_multiple_of(4);
        }
    }

    #[test]
    fn files_folders_and_devices_are_read_back() {
        let mut archive = Archive::default();
        archive.program("/init", b"abcde").unwrap();
        archive.program("/lib/x/libc.so.6", b"").unwrap();
        archive.program("/lib/x/other", b"1234").unwrap();
        archive.folder("/proc").unwrap();
        archive.folder("/proc").unwrap();
        archive.device("/dev/console", 5, 1).unwrap();
        let entries = read(&archive.finish().unwrap());
        let names: Vec<(&str, u32)> = entries.iter().map(|e| (e.0.as_str(), e.1)).collect();
        assert_eq!(
            names,
            [
                ("init", PROGRAM),
                ("lib", DIRECTORY),
                ("lib/x", DIRECTORY),
                ("lib/x/libc.so.6", PROGRAM),
                ("lib/x/other", PROGRAM),
                ("proc", DIRECTORY),
                ("dev", DIRECTORY),
                ("dev/console", CHARACTER_DEVICE),
            ]
        );
        assert_eq!(entries[0].3, b"abcde");
        assert_eq!(entries[4].3, b"1234");
        assert_eq!(entries[7].2, 1);
    }

    #[test]
    fn the_same_files_make_the_same_bytes() {
        let make = || {
            let mut archive = Archive::default();
            archive.program("/a/b", b"x").unwrap();
            archive.finish().unwrap()
        };
        assert_eq!(make(), make());
    }
}
