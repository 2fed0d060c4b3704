//! `text/csv` bodies: a header row, then rows.

use serde_json::{Map, Value};

use crate::error::Error;

/// Rows as a JSON array of objects of texts; `NULL` is null.
pub(super) fn to_json(body: &[u8]) -> Result<String, Error> {
    let text = std::str::from_utf8(body).map_err(|_| malformed("not UTF-8"))?;
    // A header that is not ended might go on.
    if !text.contains(['\n', '\r']) {
        return Err(Error::Body("parse error (not enough input) at \"\"".into()));
    }
    let mut records = records(text)?.into_iter();
    let header = records.next().ok_or_else(|| malformed("no header"))?;
    let mut rows = Vec::new();
    for record in records {
        if record.len() != header.len() {
            return Err(Error::Body(
                "All lines must have same number of fields".into(),
            ));
        }
        let cells = record.into_iter().map(|cell| match cell.as_str() {
            "NULL" => Value::Null,
            _ => Value::String(cell),
        });
        let row: Map<String, Value> = header.iter().cloned().zip(cells).collect();
        rows.push(Value::Object(row));
    }
    Ok(Value::Array(rows).to_string())
}

fn malformed(why: &str) -> Error {
    Error::Body(format!("parse error ({why}) in the CSV body"))
}

fn records(text: &str) -> Result<Vec<Vec<String>>, Error> {
    let mut records = Vec::new();
    let mut record = Vec::new();
    let mut chars = text.chars().peekable();
    while chars.peek().is_some() {
        let mut cell = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next() {
                    Some('"') if chars.next_if_eq(&'"').is_some() => cell.push('"'),
                    Some('"') => break,
                    Some(c) => cell.push(c),
                    None => return Err(malformed("a quote is not closed")),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| !matches!(c, ',' | '\r' | '\n')) {
                cell.push(c);
            }
        }
        record.push(cell);
        match chars.next() {
            Some(',') if chars.peek().is_none() => record.push(String::new()),
            Some(',') => {}
            Some('\r') => {
                chars.next_if_eq(&'\n');
                records.push(std::mem::take(&mut record));
            }
            Some('\n') => records.push(std::mem::take(&mut record)),
            None => {}
            Some(_) => return Err(malformed("text behind a closing quote")),
        }
    }
    if !record.is_empty() {
        records.push(record);
    }
    Ok(records)
}
