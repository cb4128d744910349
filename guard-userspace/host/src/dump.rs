//! Reads the lists that the kernel dumps over route netlink (rtnetlink(7)), message by message.

use std::{io, net::IpAddr, thread, time::Duration};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Why a list of the kernel cannot be read over netlink.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("route netlink: {0}")]
    Kernel(#[from] io::Error),
    #[error("route netlink: a message of {0} bytes cannot be read")]
    Garbled(usize),
    #[error("route netlink: the list changed while it was read, {TRIES} times")]
    Changing,
}

/// How many times a list is read if it changes meanwhile, and the pause that each attempt adds.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(2);

/// Longer than what the kernel writes at once (netlink_dump() in net/netlink/af_netlink.c).
const BUFFER: usize = 64 << 10;

/// Sizes and kinds of messages (linux/netlink.h).
const HEADER: usize = 16;
const ALIGNMENT: usize = 4;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Reads one whole list. `parse` gets the body of a message. It returns `None` if the body is too short, and
/// `Some(None)` to leave the message out.
///
/// The kernel marks a list that changed while it wrote it (NLM_F_DUMP_INTR). Entries may be missing or occur twice, so
/// the list is read again.
///
/// # Errors
/// The kernel refuses the request, a message is malformed, or the list changed each time.
pub fn dump<T>(
    kind: u16,
    request: &[u8],
    mut parse: impl FnMut(&[u8]) -> Option<Option<T>>,
) -> Result<Vec<T>, ReadError> {
    for attempt in 0..TRIES {
        thread::sleep(PAUSE * attempt);
        if let Some(list) = dump_once(kind, request, &mut parse)? {
            return Ok(list);
        }
    }
    Err(ReadError::Changing)
}

/// `Ok(None)`: the list changed while it was read.
fn dump_once<T>(
    kind: u16,
    request: &[u8],
    mut parse: impl FnMut(&[u8]) -> Option<Option<T>>,
) -> Result<Option<Vec<T>>, ReadError> {
    // A new socket for each attempt: an earlier one may have messages of a list that was given up.
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // With strict checks, the kernel filters routes by the requested table (Linux 4.20).
    socket.set_netlink_get_strict_chk(true)?;
    socket.send(&message(kind, request), 0)?;
    let mut list = Vec::new();
    let mut is_consistent = true;
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let garbled = || ReadError::Garbled(rest.len());
            let message = NetlinkBuffer::new_checked(rest).map_err(|_| garbled())?;
            is_consistent &= message.flags() & NLM_F_DUMP_INTR == 0;
            let body = message.payload();
            match message.message_type() {
                ERROR | DONE => {
                    // DONE has an error as well, if the kernel broke off the list.
                    match i32_at(body, 0).unwrap_or(0) {
                        0 if message.message_type() == DONE => {}
                        0 => continue,
                        error => return Err(io::Error::from_raw_os_error(error.abs()).into()),
                    }
                    return Ok(is_consistent.then_some(list));
                }
                _ => list.extend(parse(body).ok_or_else(garbled)?),
            }
            let length = (message.length() as usize).next_multiple_of(ALIGNMENT);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn message(kind: u16, request: &[u8]) -> Vec<u8> {
    let length = HEADER + request.len();
    let mut bytes = vec![0; length];
    let mut header = NetlinkBuffer::new(&mut bytes);
    // It always fits: a request has a few dozen bytes.
    header.set_length(u32::try_from(length).unwrap_or(u32::MAX));
    header.set_message_type(kind);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    bytes[HEADER..].copy_from_slice(request);
    bytes
}

/// The attributes of a message, without the headers of netlink and of the message's kind.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let attributes = NlasIterator::new(bytes).map_while(Result::ok);
    attributes.filter_map(|attribute| {
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(ATTRIBUTE_HEADER..length)?))
    })
}

const ATTRIBUTE_HEADER: usize = 4;

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(u32::cast_signed)
}

/// Parses an address in network byte order: 4 bytes are IPv4, and 16 bytes are IPv6.
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
