//! "Perhaps you meant": the most similar name, if one is similar enough.

use schema::catalog::Catalog;
use schema::ident::QualifiedName;

use super::model::Model;

/// Below this a name is another name, not a misspelled one.
const SIMILARITY_MIN: f64 = 0.75;
/// For embeds, functions and their lists of parameters, more is taken for a mistake.
const MISTAKE_SIMILARITY_MIN: f64 = 0.33;
/// Edits at most between a column's name and what may mean it.
const COLUMN_EDITS_MAX: usize = 3;
/// In larger schemas the search would cost more than the hint is worth.
const NAMES_MAX: usize = 1_000;
/// Longer names mean nothing that is there: Postgres' own have 63 bytes, a list of
/// parameters some more. Comparing costs as the product of both lengths.
const WANTED_BYTES_MAX: usize = 255;

/// The relation that `wanted` may mean.
pub(super) fn relation(catalog: &Catalog, wanted: &QualifiedName) -> Option<String> {
    if catalog.relations.len() > NAMES_MAX || wanted.name.as_str().len() > WANTED_BYTES_MAX {
        return None;
    }
    let names = catalog.relations.keys();
    let names = names.filter(|name| name.schema == wanted.schema);
    let best = closest(names.map(|name| name.name.as_str()), wanted.name.as_str())?;
    Some(format!("{}.{best}", wanted.schema.as_str()))
}

/// The embed that `target` may mean; or the relation that `origin` may, where
/// that has none at all. (The name, and the one that it would stand for.)
pub(super) fn embed(
    model: &Model,
    origin: &QualifiedName,
    target: &str,
) -> Option<(String, String)> {
    let by_key = model.relationships(origin).iter();
    let computed = model.catalog().computed_relationships.iter();
    let computed = computed.filter(|found| found.table == *origin);
    let names: Vec<&str> = by_key
        .map(|found| &found.target)
        .chain(computed.map(|found| &found.foreign_table))
        .map(|name| name.name.as_str())
        .collect();
    // It is there, so something else is wrong.
    if names.iter().any(|name| name.eq_ignore_ascii_case(target)) {
        return None;
    }
    let (wanted, found) = if names.is_empty() {
        let others = model.related();
        let others = others.filter(|name| name.schema == origin.schema);
        let wanted = origin.name.as_str();
        let others = others.map(|name| name.name.as_str());
        (wanted, similar(others, wanted))
    } else {
        (target, similar(names.into_iter(), target))
    };
    Some((found?.to_owned(), wanted.to_owned()))
}

/// The function that `wanted` may mean.
pub(super) fn function<'a>(names: impl Iterator<Item = &'a str>, wanted: &str) -> Option<&'a str> {
    similar(names, wanted)
}

fn similar<'a>(names: impl Iterator<Item = &'a str>, wanted: &str) -> Option<&'a str> {
    if wanted.len() > WANTED_BYTES_MAX {
        return None;
    }
    let names: Vec<&str> = names.collect();
    // Three letters in a row that both have, or else two.
    [3, 2].into_iter().find_map(|length| {
        let grams = grams(wanted, length);
        let related = names.iter().copied();
        let related =
            related.filter(|name| self::grams(name, length).iter().any(|g| grams.contains(g)));
        closest_above(MISTAKE_SIMILARITY_MIN, related, wanted)
    })
}

/// The columns that `wanted` may mean, as Postgres would say: the nearest one, or
/// two that are equally near.
pub(super) fn columns<'a>(names: impl Iterator<Item = &'a str>, wanted: &str) -> Vec<&'a str> {
    if wanted.len() > WANTED_BYTES_MAX {
        return Vec::new();
    }
    let letters: Vec<char> = wanted.chars().collect();
    let mut nearest = Vec::new();
    let mut least = COLUMN_EDITS_MAX;
    for name in names {
        let edits = edits(&name.chars().collect::<Vec<_>>(), &letters);
        if edits > least || edits > wanted.len() / 2 {
            continue;
        }
        if edits < least {
            (nearest, least) = (Vec::new(), edits);
        }
        nearest.push(name);
    }
    match nearest.len() {
        1 | 2 => nearest,
        _ => Vec::new(),
    }
}

/// Runs of `length` letters of a name, its ends marked.
fn grams(name: &str, length: usize) -> Vec<Vec<char>> {
    let letters = name.to_lowercase();
    let letters = letters
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | ',' | '_'));
    let marked: Vec<char> = std::iter::once('-').chain(letters).chain(['-']).collect();
    marked.windows(length).map(<[char]>::to_vec).collect()
}

fn closest<'a>(names: impl Iterator<Item = &'a str>, wanted: &str) -> Option<&'a str> {
    closest_above(SIMILARITY_MIN, names, wanted)
}

fn closest_above<'a>(
    min: f64,
    names: impl Iterator<Item = &'a str>,
    wanted: &str,
) -> Option<&'a str> {
    let scored = names.map(|name| (similarity(name, wanted), name));
    let good = scored.filter(|(score, _)| *score >= min);
    // Equal scores: the first in the alphabet, whatever order they came in.
    let best = good.max_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| y.cmp(x)));
    best.map(|(_, name)| name)
}

/// 1 less the edits between two names, relative to the longer one.
fn similarity(a: &str, b: &str) -> f64 {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let longest = a.len().max(b.len());
    if longest == 0 {
        return 1.0;
    }
    1.0 - edits(&a, &b) as f64 / longest as f64
}

/// Letters that are put in, taken out or replaced between two names.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (row, from) in a.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, to) in b.iter().enumerate() {
            let replaced = previous[column] + usize::from(from != to);
            let removed = previous[column + 1] + 1;
            let added = current[column] + 1;
            current.push(replaced.min(removed).min(added));
        }
        previous = current;
    }
    previous.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_similar_names_are_suggested() {
        let names = ["companies", "contacts", "deals"];
        assert_eq!(closest(names.into_iter(), "company"), None);
        assert_eq!(closest(names.into_iter(), "companie"), Some("companies"));
        assert_eq!(closest(names.into_iter(), "contact"), Some("contacts"));
        assert_eq!(closest(names.into_iter(), ""), None);
        let lists = ["(a, b)", "(name_param)"];
        assert_eq!(function(lists.into_iter(), "(a)"), Some("(a, b)"));
        assert_eq!(function(lists.into_iter(), "()"), None);
        let named = |wanted| columns(["id", "name", "nick", "born"].into_iter(), wanted);
        assert_eq!(named("nope"), ["name"]);
        assert_eq!(named("nime"), ["name"]);
        assert_eq!(
            columns(["size", "side"].into_iter(), "sile"),
            ["size", "side"]
        );
        assert!(named("x").is_empty() && named("price_list").is_empty());
    }

    #[test]
    fn long_names_are_not_compared() {
        let long = "a".repeat(WANTED_BYTES_MAX + 1);
        let as_long = [long.as_str()];
        assert_eq!(function(as_long.into_iter(), &long), None);
        assert!(columns(as_long.into_iter(), &long).is_empty());
    }
}
