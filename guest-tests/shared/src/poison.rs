// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a sector that nobody has written since mkfs reads as: not zeros, which
//! is what holes and unwritten extents of a file must read as anyway, but bytes
//! that say what they are and which sector they come from.
//!
//! A sector is 32 times the same 16 bytes: eight of a fixed word, eight of the
//! sector's number, little-endian. So any aligned piece of it can be told.

/// The fixed word. No file system writes it by accident.
pub const WORD: [u8; 8] = *b"WtPoison";
/// Bytes of a piece.
pub const PIECE: usize = 16;

/// A piece of this sector (of 512 bytes, counted from the start of the disk).
pub fn piece(sector: u64) -> [u8; PIECE] {
    let mut piece = [0; PIECE];
    piece[..8].copy_from_slice(&WORD);
    piece[8..].copy_from_slice(&sector.to_le_bytes());
    piece
}

/// Fills whole sectors, from this one on.
pub fn fill(sector: u64, buf: &mut [u8]) {
    for (n, sector_bytes) in buf.chunks_mut(512).enumerate() {
        let piece = piece(sector.wrapping_add(n as u64));
        for to in sector_bytes.chunks_mut(PIECE) {
            to.copy_from_slice(&piece[..to.len()]);
        }
    }
}

/// The first poison in `buf`, which began at a multiple of 16 bytes of the disk (or file): where
/// it is, and the sector that it says.
pub fn find(buf: &[u8]) -> Option<(usize, u64)> {
    let (pieces, _) = buf.as_chunks::<PIECE>();
    let at = pieces.iter().position(|p| p[..8] == WORD)?;
    let mut number = [0; 8];
    number.copy_from_slice(&pieces[at][8..]);
    Some((at * PIECE, u64::from_le_bytes(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_says_its_sector() {
        let mut buf = vec![0; 4096];
        fill(1000, &mut buf[1024..]);
        assert_eq!(find(&buf), Some((1024, 1000)));
        assert_eq!(find(&buf[1536 + 496..]), Some((0, 1001)));
        assert_eq!(find(&buf[..1024]), None);
        assert_eq!(find(&buf[..15]), None);
        let mut data = vec![0; 65536];
        crate::pattern::fill(1, 2, 0, &mut data);
        assert_eq!(find(&data), None);
    }
}
