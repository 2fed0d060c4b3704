//! Rows that a server refuses: what is said of them, in jobs and logs.

use tokio_postgres::Error;

/// Which row a server refused and why, without what is in it: that is a
/// customer's. None where the error is of something else.
pub fn of_row(error: &Error) -> Option<String> {
    let said = error.as_db_error()?;
    let code = said.code().code();
    let message = match code.get(..2) {
        // Names the value; constraints' messages name the constraint only.
        Some("22") => without_value(said.message()),
        Some("23") => said.message().to_owned(),
        _ => return None,
    };
    let place = said.where_().and_then(first_place);
    let place = place.map_or(String::new(), |place| format!("; {place}"));
    Some(format!("{message} ({code}{place})"))
}

/// A value stands in double quotes, and may hold some itself.
fn without_value(message: &str) -> String {
    match (message.find('"'), message.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}…{}", &message[..=first], &message[last..])
        }
        _ => message.to_owned(),
    }
}

/// As far as it says where, such as in `COPY notes, line 3: "the whole row"`.
fn first_place(context: &str) -> Option<&str> {
    context.lines().next()?.split(": ").next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_row_is_not_told() {
        for (said, kept) in [
            (
                r#"invalid input syntax for type integer: "sec"ret""#,
                r#"invalid input syntax for type integer: "…""#,
            ),
            (
                r#"value "99999999999" is out of range for type integer"#,
                r#"value "…" is out of range for type integer"#,
            ),
            (
                "value too long for type character varying(5)",
                "value too long for type character varying(5)",
            ),
        ] {
            assert_eq!(without_value(said), kept);
        }
        for (context, place) in [
            (r#"COPY notes, line 3: "7 secret""#, "COPY notes, line 3"),
            (
                r#"COPY notes, line 3, column id: "secret""#,
                "COPY notes, line 3, column id",
            ),
            ("JSON data, line 1: {\"secret\"\nSQL", "JSON data, line 1"),
        ] {
            assert_eq!(first_place(context), Some(place));
        }
    }
}
