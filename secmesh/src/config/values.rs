//! The kinds of values in the file, and how they are read.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// A choice between words, written in the file in small letters.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// All words, in the order of their declaration.
            pub const NAMES: &'static [&'static str] = &[$($word),+];

            /// The word for it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What happens to a packet that a rule condemns.
    Mode {
        /// It passes, and is counted as one that would have been dropped.
        Monitor = "monitor",
        /// It is dropped.
        Enforce = "enforce",
    }
}

words! {
    /// When connection attempts to a port are answered with SYN cookies.
    #[derive(Default)]
    CookieMode {
        /// Never.
        Off = "off",
        /// While the listener overflows.
        #[default]
        Auto = "auto",
        /// Always.
        Always = "always",
    }
}

words! {
    /// What takes messages from node to node.
    CarrierName {
        /// Direct connections.
        Grpc = "grpc",
        /// A message broker with `JetStream`.
        Nats = "nats",
    }
}

words! {
    /// How the kernel program is attached to an interface.
    AttachMode {
        /// In the driver where it can, else in the generic path.
        Auto = "auto",
        /// In the driver, or not at all.
        Driver = "driver",
        /// In the generic path: slower, on every driver.
        Generic = "generic",
    }
}

words! {
    /// How much the kernel program logs.
    KernelLog {
        /// Nothing; the code is not even loaded.
        Off = "off",
        /// What should not happen.
        Error = "error",
        /// What should be looked at.
        Warn = "warn",
        /// What is worth knowing.
        Info = "info",
        /// What helps to find a fault.
        Debug = "debug",
        /// Every step of every packet.
        Trace = "trace",
    }
}

/// A whole number. What does not fit is held at the ends of the type, which are outside of every
/// field's range: so the range check reports it, together with all others.
pub(super) fn count<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    i64::deserialize(from).map(|number| u32::try_from(number.max(0)).unwrap_or(u32::MAX))
}

/// [`count`] for a field that may be left out.
pub(super) fn some_count<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    count(from).map(Some)
}

/// Durations as people write them: `"10s"`, `"1m 30s"`.
pub(super) mod duration {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text)
            .map_err(|_| D::Error::custom(format!("`{text}` is not a duration")))
    }

    /// [`deserialize`] for a field that may be left out.
    pub(crate) fn deserialize_some<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        deserialize(from).map(Some)
    }

    pub(crate) fn serialize<S: Serializer>(
        duration: &Duration,
        into: S,
    ) -> Result<S::Ok, S::Error> {
        into.collect_str(&humantime::format_duration(*duration))
    }
}

/// An address with its port, or `""` for none.
pub(super) mod socket_or_off {
    use std::net::SocketAddr;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| D::Error::custom(format!("`{text}` is not an address with a port")))
    }

    #[expect(
        clippy::ref_option,
        reason = "serde hands over a reference to the field"
    )]
    pub(crate) fn serialize<S: Serializer>(
        value: &Option<SocketAddr>,
        into: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => into.collect_str(value),
            None => into.serialize_str(""),
        }
    }
}
