//! Addresses under which other machines may find this one.
//!
//! The kernel tells them as text: of IPv4 in its table of routes, where each of its own addresses
//! is a host that is local; of IPv6 in a list. Those that mean something on one cable or one
//! machine only are left out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::{fs, io};

/// The port of a server if none is said.
pub const PORT: u16 = 7777;

/// HOST:PORT, where the port may be missing and a bare IPv6 address stands in brackets.
pub fn with_port(server: &str, port: u16) -> String {
    let has_port = match server.rsplit_once(':') {
        Some((host, port)) => !host.ends_with(':') && port.parse::<u16>().is_ok(),
        None => false,
    };
    let is_bare_number = server.starts_with('[') && server.ends_with(']');
    match has_port && !is_bare_number {
        true => server.to_owned(),
        false => format!("{server}:{port}"),
    }
}

/// Whether it can be HOST or HOST:PORT.
pub fn is_possible(server: &str) -> bool {
    let is_name = |host: &str| !host.is_empty() && !host.contains(char::is_whitespace);
    match server.rsplit_once(':') {
        // Else the colon is one of a bare IPv6 address.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            is_name(host) && port.parse::<u16>().is_ok()
        }
        _ => is_name(server),
    }
}

/// Where others find who listens at `address`, which may stand for all addresses.
pub fn of_listener(address: SocketAddr) -> io::Result<Vec<String>> {
    if !address.ip().is_unspecified() {
        return Ok(vec![address.to_string()]);
    }
    let mut found: Vec<IpAddr> = of_trie(&fs::read_to_string("/proc/net/fib_trie")?);
    // Whoever listens at all addresses of IPv6 does so at those of IPv4, too.
    if address.is_ipv6() {
        found.extend(of_list(&fs::read_to_string("/proc/net/if_inet6").unwrap_or_default()));
    }
    Ok(found.into_iter().map(|ip| SocketAddr::new(ip, address.port()).to_string()).collect())
}

fn of_trie(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(host) = line.strip_prefix("|-- ") {
            last = host.parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(host) = last
            && !host.is_loopback()
            && !found.contains(&IpAddr::V4(host))
        {
            found.push(IpAddr::V4(host));
        }
    }
    found
}

fn of_list(text: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let digits = u128::from_str_radix(words.next()?, 16).ok()?;
        // Its interface's number, the length of its network, and then what it is good for.
        let is_global = words.nth(2)? == "00";
        is_global.then_some(IpAddr::V6(Ipv6Addr::from(digits)))
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_put_behind_what_has_none() {
        for (server, address) in [
            ("host", "host:7777"),
            ("host:1", "host:1"),
            ("[::1]:80", "[::1]:80"),
            ("[::1]", "[::1]:7777"),
            ("10.0.0.1", "10.0.0.1:7777"),
        ] {
            assert_eq!(with_port(server, PORT), address);
        }
    }

    #[test]
    fn what_can_be_no_address_is_known() {
        for server in ["host", "host:1", "[::1]:80", "[::1]", "::1", "10.0.0.1:7777", "my_host"] {
            assert!(is_possible(server), "{server}");
        }
        for server in ["", "host:", "host:x", "host:99999", "[::1]:99999", ":1", "a b", "a b:1"] {
            assert!(!is_possible(server), "{server}");
        }
    }

    #[test]
    fn addresses_that_others_can_reach_are_found() {
        let trie = "Main:\n     |-- 10.0.2.0\n        /24 link UNICAST\n     \
                    |-- 10.0.2.15\n        /32 host LOCAL\nLocal:\n     |-- 10.0.2.15\n        \
                    /32 host LOCAL\n     |-- 10.0.2.255\n        /32 link BROADCAST\n     \
                    |-- 127.0.0.1\n        /32 host LOCAL\n";
        assert_eq!(of_trie(trie), ["10.0.2.15".parse::<IpAddr>().unwrap()]);
        let list = "00000000000000000000000000000001 01 80 10 80       lo\n\
                    fd000000000000000000000000000007 02 40 00 80     eth0\n\
                    fe800000000000000000000000000001 02 40 20 80     eth0\n";
        assert_eq!(of_list(list), ["fd00::7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn one_address_is_where_it_is() {
        let address = "127.0.0.1:5".parse().unwrap();
        assert_eq!(of_listener(address).unwrap(), ["127.0.0.1:5"]);
        let all = of_listener("[::]:5".parse().unwrap()).unwrap();
        assert!(all.iter().all(|address| !address.starts_with("127.")), "{all:?}");
    }
}
