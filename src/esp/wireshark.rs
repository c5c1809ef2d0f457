//! The table by which Wireshark decrypts ESP (its file `esp_sa`): the one way by which a key leaves this module as text.
//! Who calls it answers for who reads it; see `formic debug esp-keys`.

use super::schedule::{KEY_LEN, SALT_LEN, SaKeys, spi};
use crate::types::Transform;
use std::fmt::Write as _;
use zeroize::Zeroizing;

/// What stands after the SPI: of the names that Wireshark knows, the one for what Formic sends.
const ALGORITHM: &str = r#"","AES-GCM with 16 octet ICV [RFC4106]","0x"#;
/// No further key.
const END: &str = "\",\"NULL\",\"\"\n";
/// Octets of one row.
const ROW_LEN: usize = r#""IPv4","*","*","0x12345678"#.len() + ALGORITHM.len() + 2 * (KEY_LEN + SALT_LEN) + END.len();

/// A row for each SA of an encrypted network; Wireshark has none for AES-GMAC, whose packets are readable as they are.
/// `outer_ipv6` is the family of the hosts' own addresses, which the table leaves open: the SPI says enough. There is room
/// for `most` rows, at once: a text that grows leaves copies behind. Each key is gone when its row is written.
pub fn wireshark_table(most: usize, sas: impl Iterator<Item = SaKeys>, outer_ipv6: bool) -> Zeroizing<String> {
    let mut table = Zeroizing::new(String::with_capacity(most * ROW_LEN));
    for keys in sas.take(most).filter(|keys| keys.identity().transform == Transform::Gcm) {
        let family = if outer_ipv6 { "IPv6" } else { "IPv4" };
        // Writing to a String cannot fail.
        let _ = write!(table, r#""{family}","*","*","{:#010x}{ALGORITHM}"#, spi(keys.identity()).0);
        push_hex(&mut table, keys.key().expose());
        push_hex(&mut table, &*Zeroizing::new(keys.salt()));
        table.push_str(END);
    }
    table
}

fn push_hex(table: &mut String, octets: &[u8]) {
    let digits = octets.iter().flat_map(|octet| [octet >> 4, octet & 15]);
    table.extend(digits.filter_map(|digit| char::from_digit(digit.into(), 16)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::esp::testing::{identity, keys};

    #[test]
    fn the_table_is_as_wireshark_reads_it() {
        let sas = || [Transform::Gcm, Transform::Gmac].into_iter().map(|transform| keys(&identity(transform)));
        let table = wireshark_table(2, sas(), false);
        let spi = spi(&identity(Transform::Gcm)).0;
        let key = "42".repeat(32);
        let row = format!(
            r#""IPv4","*","*","0x{spi:08x}","AES-GCM with 16 octet ICV [RFC4106]","0x{key}01020304","NULL","""#
        );
        assert_eq!(*table, format!("{row}\n"));
        assert_eq!(table.len(), ROW_LEN);
        assert!(wireshark_table(2, sas(), true).starts_with(r#""IPv6","*""#));
    }

    #[test]
    fn the_text_is_made_in_one_piece() {
        let sas = (0..60).map(|_| keys(&identity(Transform::Gcm)));
        let table = wireshark_table(50, sas, true);
        assert_eq!((table.len(), table.capacity()), (50 * ROW_LEN, 50 * ROW_LEN));
        assert_eq!(table.lines().count(), 50);
    }
}
