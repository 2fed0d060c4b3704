use proptest::prelude::*;

use super::*;

const ACME: TenantId = TenantId(Uuid::from_u128(0xacae));
const ORDERS: TableHash = TableHash::of("public", "orders");

fn relation(id: u32, schema: &str, name: &str, columns: &[&str]) -> Vec<u8> {
    let mut bytes = vec![b'R'];
    bytes.extend(id.to_be_bytes());
    bytes.extend(schema.bytes().chain([0]));
    bytes.extend(name.bytes().chain([0]));
    bytes.push(b'd');
    bytes.extend((columns.len() as u16).to_be_bytes());
    for column in columns {
        bytes.push(1);
        bytes.extend(column.bytes().chain([0]));
        bytes.extend([0; 8]);
    }
    bytes
}

fn tuple(values: &[Option<(u8, &[u8])>]) -> Vec<u8> {
    let mut bytes = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        match value {
            None => bytes.push(b'n'),
            Some((format, value)) => {
                bytes.push(*format);
                bytes.extend((value.len() as u32).to_be_bytes());
                bytes.extend(*value);
            }
        }
    }
    bytes
}

fn row(kind: u8, id: u32, parts: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(id.to_be_bytes());
    for (kind, part) in parts {
        bytes.push(*kind);
        bytes.extend(part);
    }
    bytes
}

/// With `orders` (16384) of tenants and `countries` (16385) of nobody.
fn decoder() -> Decoder {
    let mut decoder = Decoder::default();
    let orders = relation(16384, "public", "orders", &["id", "tenant_id"]);
    decoder.change(&orders).unwrap();
    let countries = relation(16385, "public", "countries", &["code"]);
    decoder.change(&countries).unwrap();
    decoder
}

fn cells(decoder: &mut Decoder, change: &[u8]) -> CellSet {
    decoder.begin(7).unwrap();
    decoder.change(change).unwrap();
    decoder.commit(Lsn(9), 0).unwrap().cells
}

fn some(cells: &[Cell]) -> CellSet {
    let mut set = CellSet::default();
    cells.iter().for_each(|cell| set.insert(*cell));
    set
}

#[test]
fn rows_raise_their_tenants_cell() {
    let mut decoder = decoder();
    let (acme, text) = (ACME.0.as_bytes(), ACME.0.to_string());
    let binary = tuple(&[None, Some((b'b', acme))]);
    let textual = tuple(&[Some((b't', b"1")), Some((b't', text.as_bytes()))]);
    let expected = some(&[Cell::rows(ACME, ORDERS)]);
    for change in [
        row(b'I', 16384, &[(b'N', binary.clone())]),
        row(b'U', 16384, &[(b'N', textual.clone())]),
        row(
            b'U',
            16384,
            &[(b'K', textual.clone()), (b'N', binary.clone())],
        ),
        row(b'D', 16384, &[(b'K', binary)]),
        row(b'D', 16384, &[(b'O', textual)]),
    ] {
        assert_eq!(cells(&mut decoder, &change), expected);
    }
}

#[test]
fn what_has_no_tenant_raises_the_tables_cell() {
    let mut decoder = decoder();
    let country = row(b'I', 16385, &[(b'N', tuple(&[Some((b't', b"de"))]))]);
    let countries = TableHash::of("public", "countries");
    assert_eq!(
        cells(&mut decoder, &country),
        some(&[Cell::table(countries)])
    );
    let mut truncate = vec![b'T', 0, 0, 0, 1, 0];
    truncate.extend(16384_u32.to_be_bytes());
    assert_eq!(cells(&mut decoder, &truncate), some(&[Cell::table(ORDERS)]));
}

#[test]
fn a_row_that_cannot_be_read_raises_all() {
    let mut decoder = decoder();
    for value in [None, Some((b't', &b"acme"[..])), Some((b'b', &b"12"[..]))] {
        let change = row(b'I', 16384, &[(b'N', tuple(&[None, value]))]);
        assert_eq!(cells(&mut decoder, &change), CellSet::All);
    }
}

#[test]
fn messages_count_in_transactions_only() {
    let mut decoder = decoder();
    decoder.message(true, "ringfence.ddl", b"");
    decoder.begin(1).unwrap();
    decoder.message(false, "ringfence.marker", b"forged");
    decoder.message(false, "ringfence.ddl", b"");
    decoder.message(true, "somebody's", b"");
    decoder.message(true, "ringfence.marker", b"7");
    let commit = decoder.commit(Lsn(5), 0).unwrap();
    assert_eq!(commit.markers, [b"7"]);
    assert!(commit.cells.is_empty());
    decoder.begin(2).unwrap();
    decoder.message(true, "ringfence.ddl", b"");
    assert_eq!(decoder.commit(Lsn(6), 0).unwrap().cells, CellSet::All);
}

#[test]
fn what_comes_at_the_wrong_time_is_refused() {
    let mut decoder = decoder();
    let insert = row(b'I', 16384, &[(b'N', tuple(&[None, None]))]);
    assert_eq!(decoder.change(&insert), Err(DecodeError::Order));
    assert_eq!(decoder.commit(Lsn(1), 0), Err(DecodeError::Order));
    decoder.begin(1).unwrap();
    assert_eq!(decoder.begin(2), Err(DecodeError::Order));
    let unknown = row(b'I', 1, &[(b'N', tuple(&[]))]);
    assert_eq!(decoder.change(&unknown), Err(DecodeError::Table(1)));
    assert_eq!(decoder.change(b"S"), Err(DecodeError::Kind('S')));
}

proptest! {
    #[test]
    fn noise_is_refused_in_peace(noise: Vec<Vec<u8>>) {
        let mut decoder = decoder();
        decoder.begin(1).unwrap();
        for bytes in &noise {
            let _ = decoder.change(bytes);
        }
        decoder.commit(Lsn(1), 0).unwrap();
    }

    #[test]
    fn a_message_that_was_cut_lengthened_or_changed_is_refused_or_harmless(
        cut in 0_usize..60, flip in 0_usize..60, with: u8,
    ) {
        let acme = tuple(&[Some((b't', b"17")), Some((b'b', ACME.0.as_bytes()))]);
        let whole = row(b'U', 16384, &[(b'K', acme.clone()), (b'N', acme)]);
        let cut = cut.min(whole.len() - 1);
        let mut decoder = decoder();
        decoder.begin(1).unwrap();
        prop_assert!(decoder.change(&whole[..cut]).is_err());
        let longer = [&whole[..], &[0]].concat();
        prop_assert_eq!(decoder.change(&longer), Err(DecodeError::Long));
        let mut changed = whole;
        let at = flip % changed.len();
        changed[at] ^= with;
        let _ = decoder.change(&changed);
        let noise = relation(1, "a", "b", &["c"]);
        prop_assert!(decoder.change(&noise[..cut.min(noise.len() - 1)]).is_err());
    }
}
