//! Debian's kernels, fetched by the machine's own apt from the machine's own mirror, into a folder of ours.
//!
//! apt gets a configuration of its own on top of the machine's: other sources, other lists, another cache.
//! Nothing is installed and no file of the machine's apt changes. Signatures and hashes are checked by apt
//! with Debian's keyring, as for any package.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::Series;
use crate::sh;

/// Debian's own keys; of the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The package that depends on the newest kernel of its suite.
const NEWEST: &str = "linux-image-amd64";
/// Lists younger than this are taken as they are.
const FRESH: Duration = Duration::from_hours(12);
/// Marks when the lists were fetched last.
const STAMP: &str = "refreshed";

/// An apt that works in a folder of its own.
pub struct Apt {
    home: PathBuf,
    config: PathBuf,
}

/// A kernel package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Name, with the kernel's release in it.
    pub package: String,
    /// Version.
    pub version: String,
}

/// Where this machine gets Debian from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirrors {
    main: String,
    security: Option<String>,
}

impl Apt {
    /// Prepares the folder `home` and its configuration.
    ///
    /// # Errors
    /// When this is no Debian on x86-64, its apt names no mirror, or the folder cannot be written.
    pub fn prepare(home: &Path) -> anyhow::Result<Self> {
        ensure!(
            std::env::consts::ARCH == "x86_64",
            "the kernels that are booted are Debian's for x86-64; this machine is {}",
            std::env::consts::ARCH
        );
        if sh::which("apt-get").is_none() {
            bail!(
                "this is no Debian (no apt-get here): the kernels come from the machine's Debian mirror"
            );
        }
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is not there: `apt-get install debian-archive-keyring` puts it there"
        );
        let own = own_suite()?;
        let told = sh::output(sh::command("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
            "Created-By: Packages",
        ]))?;
        let mirrors =
            mirrors(&String::from_utf8_lossy(&told.stdout), &own).with_context(|| {
                format!(
                    "this machine's apt has no source for the suite {own} of Debian; add it to /etc/apt/sources.list.d"
                )
            })?;
        let home = home.to_path_buf();
        for folder in ["lists/partial", "cache/archives/partial", "packages"] {
            let folder = home.join(folder);
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let this = Self {
            config: home.join("apt.conf"),
            home,
        };
        let sources = this.home.join("sources.list");
        write(&sources, &sources_list(&mirrors))?;
        write(&this.config, &this.configuration(&sources)?)?;
        Ok(this)
    }

    /// What differs from the machine's configuration, which is read before it.
    fn configuration(&self, sources: &Path) -> anyhow::Result<String> {
        let quoted = |path: &Path| -> anyhow::Result<String> {
            let text = path.to_str().filter(|text| !text.contains(['"', '\n']));
            let text = text.with_context(|| format!("apt cannot be told of {}", path.display()))?;
            Ok(format!("\"{text}\""))
        };
        // Some images clean the machine's package cache after each update; that is not for us to do.
        Ok(format!(
            "Dir::Etc::SourceList {};\nDir::Etc::SourceParts \"/dev/null\";\nDir::State::Lists {};\nDir::Cache {};\n\
             Acquire::Languages \"none\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             #clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n",
            quoted(sources)?,
            quoted(&self.home.join("lists"))?,
            quoted(&self.home.join("cache"))?,
        ))
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = sh::command(program);
        command
            .arg("-c")
            .arg(&self.config)
            .args(args)
            .current_dir(self.home.join("packages"));
        command
    }

    /// Fetches the lists of packages, unless they are less than twelve hours old.
    ///
    /// Gives a note for people when that did not work and older lists have to do.
    ///
    /// # Errors
    /// When it did not work and there are no older lists.
    pub fn refresh(&self) -> anyhow::Result<Option<String>> {
        let stamp = self.home.join(STAMP);
        let age = std::fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(None);
        }
        // Without `--error-on=any` a failed fetch is only a warning.
        match sh::output(&mut self.command("apt-get", &["-qq", "--error-on=any", "update"])) {
            Ok(_) => {
                write(&stamp, "")?;
                Ok(None)
            }
            Err(error) if age.is_some() => Ok(Some(format!(
                "the lists of packages could not be fetched, the older ones are used: {error:#}"
            ))),
            Err(error) => Err(error),
        }
    }

    /// The newest kernel of a series.
    ///
    /// # Errors
    /// When the lists have none.
    pub fn newest(&self, series: Series) -> anyhow::Result<Image> {
        let output = sh::output(&mut self.command("apt-cache", &["show", NEWEST]))?;
        let all = images(&String::from_utf8_lossy(&output.stdout), series.name());
        let mut newest: Option<Image> = None;
        for image in all {
            let newer = match &newest {
                None => true,
                Some(best) => compare(&image.version, &best.version)? == Ordering::Greater,
            };
            if newer {
                newest = Some(image);
            }
        }
        newest.with_context(|| {
            format!(
                "no kernel of series {} among Debian's {} packages of {}",
                series.name(),
                NEWEST,
                series.suite()
            )
        })
    }

    /// Downloads a package, if it is not here yet, and gives the file. apt compares the hash in both cases.
    ///
    /// Older packages of the series are removed.
    ///
    /// # Errors
    /// When apt fails.
    pub fn download(&self, image: &Image, series: Series) -> anyhow::Result<PathBuf> {
        let wanted = format!("{}={}", image.package, image.version);
        sh::output(&mut self.command("apt-get", &["-qq", "download", &wanted]))?;
        let folder = self.home.join("packages");
        let shown = || format!("cannot read {}", folder.display());
        // apt writes a colon in a version as %3a.
        let ours = format!("{}_{}_", image.package, image.version.replace(':', "%3a"));
        let of_series = format!("linux-image-{}.", series.name());
        let mut found = None;
        for file in std::fs::read_dir(&folder).with_context(shown)? {
            let file = file.with_context(shown)?;
            let name = file.file_name().to_string_lossy().into_owned();
            if name.starts_with(&ours) {
                found = Some(file.path());
            } else if name.starts_with(&of_series) {
                std::fs::remove_file(file.path())
                    .with_context(|| format!("cannot remove {}", file.path().display()))?;
            }
        }
        found.with_context(|| {
            format!(
                "apt downloaded {wanted}, but no file {ours}* is in {}",
                folder.display()
            )
        })
    }
}

/// `VERSION_CODENAME` of this machine.
fn own_suite() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release has no VERSION_CODENAME")
}

/// Reads lines of `repository|release|component`.
fn mirrors(told: &str, own: &str) -> Option<Mirrors> {
    let of = |release: &str| {
        told.lines().find_map(|line| {
            let mut fields = line.split('|');
            let (uri, its, component) = (fields.next()?, fields.next()?, fields.next()?);
            (its == release && component == "main").then(|| uri.to_owned())
        })
    };
    Some(Mirrors {
        main: of(own)?,
        security: of(&format!("{own}-security")),
    })
}

fn sources_list(mirrors: &Mirrors) -> String {
    let mut text = String::new();
    for series in Series::ALL {
        let suite = series.suite();
        let mut add = |uri: &str, suite: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "deb [signed-by={KEYRING}] {uri} {suite} main");
        };
        add(&mirrors.main, suite);
        if let Some(security) = &mirrors.security {
            add(security, &format!("{suite}-security"));
        }
    }
    text
}

/// The kernels of a series among what `apt-cache show linux-image-amd64` prints.
fn images(shown: &str, series: &str) -> Vec<Image> {
    shown
        .split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| {
                stanza
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            let version = field("Version")?;
            version.strip_prefix(series)?.strip_prefix('.')?;
            // linux-image-6.1.0-18-amd64 (= 6.1.76-1)
            let (package, exactly) = field("Depends")?
                .split(',')
                .next()?
                .trim()
                .split_once(' ')?;
            let exactly = exactly.strip_prefix("(= ")?.strip_suffix(')')?;
            Some(Image {
                package: package.to_owned(),
                version: exactly.to_owned(),
            })
        })
        .collect()
}

/// Compares versions as Debian does.
fn compare(left: &str, right: &str) -> anyhow::Result<Ordering> {
    if left == right {
        return Ok(Ordering::Equal);
    }
    let status = sh::command("dpkg")
        .args(["--compare-versions", left, "gt", right])
        .status()
        .context("cannot start dpkg")?;
    Ok(if status.success() {
        Ordering::Greater
    } else {
        Ordering::Less
    })
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirrors_of_the_machine_are_found() {
        let told = "m://a/debian/|bookworm-updates|main\nm://a/debian/|bookworm|contrib\nm://a/debian/|bookworm|main\n\
                    m://b/security/|bookworm-security|main\nm://c/|nodistro|main\n";
        let found = mirrors(told, "bookworm").unwrap();
        assert_eq!(found.main, "m://a/debian/");
        assert_eq!(found.security.as_deref(), Some("m://b/security/"));
        let list = sources_list(&found);
        for series in Series::ALL {
            let suite = series.suite();
            assert!(
                list.contains(&format!("m://a/debian/ {suite} main")),
                "{list}"
            );
            assert!(
                list.contains(&format!("m://b/security/ {suite}-security main")),
                "{list}"
            );
        }
        assert!(list.lines().all(|line| line.contains("signed-by=")));
        assert_eq!(mirrors(told, "trixie"), None);
        let without = mirrors("m://a/|bookworm|main\n", "bookworm").unwrap();
        assert!(!sources_list(&without).contains("-security"));
    }

    #[test]
    fn kernels_of_the_series_are_read_and_no_others() {
        let shown = "Package: linux-image-amd64\nVersion: 6.12.9-1\nDepends: linux-image-6.12.9+deb13-amd64 (= 6.12.9-1)\n\n\
                     Package: linux-image-amd64\nVersion: 6.1.76-1\nDepends: linux-image-6.1.0-18-amd64 (= 6.1.76-1)\n\n\
                     Package: linux-image-amd64\nVersion: 6.1.9-1\nDepends: nonsense\n";
        let image = |package: &str, version: &str| Image {
            package: package.to_owned(),
            version: version.to_owned(),
        };
        assert_eq!(
            images(shown, "6.1"),
            [image("linux-image-6.1.0-18-amd64", "6.1.76-1")]
        );
        assert_eq!(
            images(shown, "6.12"),
            [image("linux-image-6.12.9+deb13-amd64", "6.12.9-1")]
        );
        assert_eq!(images(shown, "5.10"), []);
    }
}
