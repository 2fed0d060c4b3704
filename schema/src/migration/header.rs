//! The `-- ringfence:` lines of a migration file.

use std::time::Duration;

use super::{
    CHUNK_ROWS, Header, LOCK_TIMEOUT, LOCK_TIMEOUT_MAX, MigrationError, Phase, STATEMENT_TIMEOUT,
};

/// A rule that a file may break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The rule's id.
    pub rule: String,
    /// The one table for which it may be broken, as it is spelled; none: wherever.
    pub table: Option<String>,
    /// Why it may.
    pub reason: String,
}

const MARK: &str = "-- ringfence:";
/// Most rows of one chunk: each is a transaction that other writers wait for.
const CHUNK_ROWS_MAX: u32 = 100_000;

/// The lines `-- ringfence: …` of a text, with their numbers from `first`.
fn lines(text: &str, first: u32) -> impl Iterator<Item = (u32, &str)> {
    let numbered = (first..).zip(text.lines());
    numbered.filter_map(|(number, line)| Some((number, line.trim().strip_prefix(MARK)?.trim())))
}

/// What stands above a file's first statement; back-fills are that statement's.
pub(super) fn parse(file: &str, above: &str) -> Result<Header, MigrationError> {
    let mut header = Header {
        phase: Phase::Expand,
        transaction: true,
        lock_timeout: LOCK_TIMEOUT,
        statement_timeout: None,
        allowed: Vec::new(),
    };
    let mut timeout = None;
    for (line, words) in lines(above, 1) {
        let problem = |problem: String| MigrationError::Header {
            file: file.to_owned(),
            line,
            problem,
        };
        let (word, rest) = words.split_once(' ').unwrap_or((words, ""));
        let rest = rest.trim();
        match word {
            "phase" => {
                header.phase = match rest {
                    "expand" => Phase::Expand,
                    "contract" => Phase::Contract,
                    _ => return Err(problem("the phase is expand or contract".into())),
                }
            }
            "no-transaction" if rest.is_empty() => header.transaction = false,
            "no-transaction" => return Err(problem("no-transaction takes nothing".into())),
            "lock-timeout" => match duration(rest) {
                Some(wait) if wait <= LOCK_TIMEOUT_MAX && !wait.is_zero() => {
                    header.lock_timeout = wait;
                }
                _ => {
                    return Err(problem(
                        "lock-timeout takes a time of at most 1s, such as 500ms".into(),
                    ));
                }
            },
            "statement-timeout" => match duration(rest) {
                Some(longest) if !longest.is_zero() => timeout = Some(longest),
                _ => {
                    return Err(problem(
                        "statement-timeout takes a time, such as 10min".into(),
                    ));
                }
            },
            "allow" => {
                let (rule, reason) = rest.split_once(" because ").unwrap_or_default();
                let (rule, table) = match rule.trim().split_once(" for ") {
                    Some((rule, table)) => (rule.trim(), Some(table.trim())),
                    None => (rule.trim(), None),
                };
                let reason = reason.trim();
                if rule.is_empty() || reason.is_empty() {
                    return Err(problem("write `allow RULE because REASON`".into()));
                }
                if table.is_some() && rule != "table-unscoped" {
                    return Err(problem(
                        "only `allow table-unscoped for TABLE because REASON` names a table".into(),
                    ));
                }
                header.allowed.push(Allowed {
                    rule: rule.to_owned(),
                    table: table.map(str::to_owned),
                    reason: reason.to_owned(),
                });
            }
            "backfill" => {}
            _ => {
                return Err(problem(format!(
                    "`{word}` is not known; there are phase, no-transaction, lock-timeout, \
                     statement-timeout, allow, and above a statement backfill"
                )));
            }
        }
    }
    // Outside a transaction a statement may be a concurrent index build of hours.
    header.statement_timeout = timeout.or(header.transaction.then_some(STATEMENT_TIMEOUT));
    Ok(header)
}

/// The rows of a chunk, where the lines above a statement say `backfill`.
/// `line` is the first line's number; above the `first` statement a file's
/// header stands, too.
pub(super) fn backfill(
    file: &str,
    line: u32,
    above: &str,
    first: bool,
) -> Result<Option<u32>, MigrationError> {
    let mut rows = None;
    for (line, words) in lines(above, line) {
        let problem = |problem: &str| MigrationError::Header {
            file: file.to_owned(),
            line,
            problem: problem.to_owned(),
        };
        let mut words = words.split_whitespace();
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("backfill"), None, _, _) => rows = Some(CHUNK_ROWS),
            (Some("backfill"), Some("rows"), Some(number), None) => match number.parse() {
                Ok(number) if (1..=CHUNK_ROWS_MAX).contains(&number) => rows = Some(number),
                _ => return Err(problem("a chunk has 1 to 100000 rows")),
            },
            (Some("backfill"), ..) => {
                return Err(problem("write `backfill` or `backfill rows 500`"));
            }
            _ if first => {}
            _ => {
                return Err(problem("a file's header stands above its first statement"));
            }
        }
    }
    Ok(rows)
}

/// `500ms`, `2s`, `10min`, `1h`.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u64 = text[..text.len() - unit.len()].parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(milliseconds)?))
}
