//! A veth pair between a sender and a receiver, ready for the packet generator.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};

use crate::{
    kernel::tool,
    netns::{Namespace, Napi},
};

/// Which processor the sender's end, and the generator, runs on.
pub const SENDER_CPU: usize = 0;
/// Which processor the receiver's end runs on.
pub const RECEIVER_CPU: usize = 1;

/// A veth pair; `far` is in a namespace of its own, `near` in the one where it was made.
#[derive(Debug)]
pub struct Wire {
    /// The sender's namespace.
    pub sender: Namespace,
    /// The receiver's namespace.
    pub receiver: Namespace,
    /// The sender's interface.
    pub far: String,
    /// The receiver's interface.
    pub near: String,
    /// The link address of `near`.
    pub near_mac: [u8; 6],
    net: u8,
}

impl Wire {
    /// Makes the pair, with addresses at both ends, GRO (a veth end without an XDP program has NAPI only
    /// with it), and everything beyond routed from `near` to `far`. `net` tells several wires of one
    /// namespace apart; the first one made has the default route.
    ///
    /// # Errors
    /// What the tools say; needs root.
    pub fn new(net: u8) -> Result<Self> {
        // Kernel threads are named after interfaces, and they are in no namespace.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let (near, far) = (
            format!("n{}x{number}", process::id()),
            format!("f{}x{number}", process::id()),
        );
        let (near_mac, far_mac) = ([2, 0, 0, 0, net, 1], [2, 0, 0, 0, net, 2]);
        let wire = Self {
            sender: Namespace::new()?,
            receiver: Namespace::current()?,
            far,
            near,
            near_mac,
            net,
        };
        let (near_shown, far_shown) = (shown(near_mac), shown(far_mac));
        let (near, far) = (wire.near.as_str(), wire.far.as_str());
        let add = [
            "link",
            "add",
            near,
            "address",
            &near_shown,
            "type",
            "veth",
            "peer",
            "name",
            far,
            "address",
            &far_shown,
            "netns",
            &wire.sender.path(),
        ];
        tool("ip", &add)?;
        wire.receiver
            .run(|| end(near, wire.near4(), wire.near6()))?;
        wire.sender.run(|| end(far, wire.far4(), wire.far6()))?;
        wire.receiver
            .run(|| neighbours(near, &[wire.far4().into(), wire.far6().into()], &far_shown))?;
        wire.sender.run(|| {
            neighbours(
                far,
                &[wire.near4().into(), wire.near6().into()],
                &near_shown,
            )
        })?;
        // A second wire's default routes lose against the first's, by their metric. Replaced, because the kernel
        // takes an ended wire's routes out a moment after its interfaces.
        let metric = (100 + u32::from(net)).to_string();
        for (family, gateway) in [
            ("-4", wire.far4().to_string()),
            ("-6", wire.far6().to_string()),
        ] {
            let add = [
                family, "route", "replace", "default", "via", &gateway, "dev", near, "metric",
                &metric,
            ];
            tool("ip", &add)?;
        }
        Ok(wire)
    }

    /// The receiver's IPv4 address.
    pub fn near4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.net, 1)
    }

    /// The sender's IPv4 address.
    pub fn far4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.net, 2)
    }

    /// The receiver's IPv6 address.
    pub fn near6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, self.net.into(), 0, 0, 0, 1)
    }

    /// The sender's IPv6 address.
    pub fn far6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, self.net.into(), 0, 0, 0, 2)
    }

    /// Gives each end a processor and a kernel thread of its own; gives the receiver's.
    ///
    /// # Errors
    /// On one processor, or when the kernel has no threaded NAPI.
    pub fn two_processors(&self) -> Result<Napi> {
        self.sender.thread_napi(&self.far, SENDER_CPU)?;
        self.receiver.thread_napi(&self.near, RECEIVER_CPU)
    }

    /// The driver's counters of the receiver's end, such as `rx_queue_0_xdp_drops`.
    ///
    /// # Errors
    /// What ethtool says.
    pub fn statistics(&self) -> Result<BTreeMap<String, u64>> {
        let text = self.receiver.run(|| tool("ethtool", &["-S", &self.near]))?;
        Ok(text
            .lines()
            .filter_map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.trim().to_owned(), value.trim().parse().ok()?))
            })
            .collect())
    }

    /// Packets that the receiver's end has taken from its ring, whatever became of them, by the driver's count.
    ///
    /// # Errors
    /// What ethtool says, and when the driver does not count them.
    pub fn received(&self) -> Result<u64> {
        self.counted("rx_queue_0_xdp_packets")
    }

    /// Packets that an XDP program at the receiver's end has dropped, by the driver's count.
    ///
    /// # Errors
    /// What ethtool says, and when the driver does not count them.
    pub fn xdp_drops(&self) -> Result<u64> {
        self.counted("rx_queue_0_xdp_drops")
    }

    fn counted(&self, name: &str) -> Result<u64> {
        let statistics = self.statistics()?;
        statistics
            .get(name)
            .copied()
            .with_context(|| format!("no {name} among {statistics:?}"))
    }
}

fn end(interface: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    tool("ip", &["link", "set", "lo", "up"])?;
    tool("ip", &["link", "set", interface, "up"])?;
    tool("ethtool", &["-K", interface, "gro", "on"])?;
    tool(
        "ip",
        &["addr", "add", &format!("{v4}/24"), "dev", interface],
    )?;
    let v6 = format!("{v6}/64");
    tool("ip", &["addr", "add", &v6, "dev", interface, "nodad"])?;
    Ok(())
}

fn neighbours(interface: &str, addresses: &[IpAddr], mac: &str) -> Result<()> {
    for address in addresses {
        let address = address.to_string();
        tool(
            "ip",
            &[
                "neigh",
                "replace",
                &address,
                "lladdr",
                mac,
                "dev",
                interface,
                "nud",
                "permanent",
            ],
        )?;
    }
    Ok(())
}

fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
