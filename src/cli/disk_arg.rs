// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--disk name=log,memory=64MiB,socket=/tmp/log.sock`: a disk beside the disk
//! under test.

use super::serve::size;
use crate::device::{Address, Backing, MoreDisk};
use crate::fault::Shape;

/// What is said of one. Its socket may be handed over by a service manager.
#[derive(Clone, Debug)]
pub struct DiskArg {
    pub name: String,
    pub socket: Option<Address>,
    pub backing: Backing,
    pub shape: Shape,
}

impl DiskArg {
    /// The disk, with this socket.
    pub fn with(&self, socket: Address) -> MoreDisk {
        MoreDisk {
            name: self.name.clone(),
            socket,
            backing: self.backing.clone(),
            shape: self.shape.clone(),
        }
    }
}

/// Reads one.
pub fn parse(text: &str) -> Result<DiskArg, String> {
    let (mut name, mut socket, mut bytes) = (None, None, None);
    let (mut image, mut memory, mut null) = (None, None, None);
    let mut shape = Shape::default();
    let mut seen = Vec::new();
    for part in text.split(',') {
        let Some((key, value)) = part.split_once('=') else {
            return Err(format!("'{part}', expected KEY=VALUE"));
        };
        if seen.contains(&key) {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
        let number = || {
            let number = value.parse::<u64>();
            number.map_err(|_| format!("{key}={value}, expected a number"))
        };
        let switch = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(format!("{key}={value}, expected on or off")),
        };
        match key {
            "name" => name = Some(value.to_owned()),
            "socket" | "fd" if socket.is_some() => {
                return Err("expected one of socket=PATH and fd=N".into());
            }
            "socket" => socket = Some(Address::Path(value.into())),
            "fd" => {
                let fd = number()?;
                socket = Some(Address::Fd(i32::try_from(fd).unwrap_or(i32::MAX)));
            }
            "image" => image = Some(value.into()),
            "size" => bytes = Some(size(value)?),
            "memory" => memory = Some(size(value)?),
            "null" => null = Some(size(value)?),
            "serial" => shape.serial = Some(value.to_owned()),
            "queues" => shape.queues = Some(u16::try_from(number()?).unwrap_or(u16::MAX)),
            "logical-block" => {
                shape.logical_block = Some(u32::try_from(size(value)?).unwrap_or(u32::MAX));
            }
            "read-only" => shape.read_only = Some(switch()?),
            "write-cache" => shape.write_cache = Some(switch()?),
            "discard" => shape.discard = Some(switch()?),
            _ => {
                return Err(format!(
                    "unknown key '{key}', expected name, socket, fd, image, size, memory, null, serial, queues, \
                     logical-block, read-only, write-cache or discard"
                ));
            }
        }
    }
    let backing = match (image, memory, null) {
        (Some(image), None, None) => Backing::Image(image, bytes),
        (None, Some(memory), None) if bytes.is_none() => Backing::Memory(memory),
        (None, None, Some(null)) if bytes.is_none() => Backing::Null(null),
        _ => return Err(
            "expected one of image=FILE (with size=SIZE to create it), memory=SIZE and null=SIZE"
                .into(),
        ),
    };
    let Some(name) = name else {
        return Err("expected name=NAME".into());
    };
    Ok(DiskArg {
        name,
        socket,
        backing,
        shape,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_read_and_mistakes_are_told() {
        let disk = parse("name=log,image=/a/b,size=64MiB,socket=/s,read-only=on,queues=2").unwrap();
        assert_eq!(disk.socket, Some(Address::Path("/s".into())));
        assert_eq!(parse("name=log,memory=1M").unwrap().socket, None);
        assert_eq!(disk.backing, Backing::Image("/a/b".into(), Some(64 << 20)));
        assert_eq!(
            (disk.shape.read_only, disk.shape.queues),
            (Some(true), Some(2))
        );
        for (text, what) in [
            ("log", "KEY=VALUE"),
            ("name=a,memory=1M,socket=s,name=b", "name is given twice"),
            (
                "name=a,memory=1M,memory=2M,socket=s",
                "memory is given twice",
            ),
            ("name=a,memory=1M,socket=s,fd=7", "one of socket"),
            ("memory=1M,socket=s", "name"),
            ("name=a,socket=s", "memory=SIZE"),
            ("name=a,socket=s,memory=1M,null=1M", "one of"),
            ("name=a,socket=s,memory=1M,size=1M", "one of"),
            ("name=a,fd=x,memory=1M", "a number"),
            ("name=a,socket=s,memory=1M,read-only=yes", "on or off"),
            ("name=a,socket=s,memory=1M,colour=red", "unknown key"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
