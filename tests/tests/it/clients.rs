//! Three clients at once: one within its limit, an office that is over its limit, and a flood.

use std::{net::IpAddr, time::Duration};

use lab::{
    flood::Flood,
    topology::{FLOODER_V4, USER_V4},
};

use crate::site::Site;

pub const OFFICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 20));

pub const POLICY: &str = "
[[service]]
name = \"web\"
ports = [\"tcp/80\"]
[service.limit]
packets = \"500/s\"
connections = \"20/s\"
[[source]]
name = \"office\"
cidrs = [\"198.51.100.20/32\"]
factor = 5
";

/// A number of packets for which no test waits to the end.
const ENDLESS: u64 = 1_000_000;

/// The running traffic of the three clients.
pub struct Traffic {
    _good: Flood,
    _office: Flood,
    _flood: Flood,
}

impl Traffic {
    pub fn start(site: &Site) -> Self {
        let lab = &site.lab;
        lab.internet
            .ip(&format!("addr add {OFFICE} dev lo"))
            .unwrap();
        let send = |from, port, interval| {
            Flood::start(lab, from, port, Duration::from_micros(interval), ENDLESS).unwrap()
        };
        Self {
            _good: send(USER_V4, 80, 100_000),
            _office: send(OFFICE, 80, 2_000),
            _flood: send(FLOODER_V4, 8_000, 200),
        }
    }
}
