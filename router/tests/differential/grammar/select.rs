//! Select lists.

use schema::catalog::Relation;

use super::Grammar;
use crate::case::Section;
use crate::world::quoted;

/// The request's own rows, or those of an embed.
#[derive(Clone)]
pub(crate) struct Level<'a> {
    /// Names of embeds that lead to it.
    pub(crate) path: Vec<String>,
    pub(crate) relation: &'a Relation,
    /// There may be many rows for each row above.
    pub(crate) to_many: bool,
    /// Rows above depend on whether there are some.
    pub(crate) inner: bool,
    /// The name of what is embedded.
    pub(crate) bare: String,
    /// Its rows are groups.
    pub(crate) grouped: bool,
}

impl<'a> Level<'a> {
    pub(crate) fn plain(relation: &'a Relation) -> Self {
        Self {
            path: Vec::new(),
            relation,
            to_many: true,
            inner: false,
            bare: String::new(),
            grouped: false,
        }
    }

    /// A parameter of this level.
    pub(crate) fn key(&self, last: &str) -> String {
        let mut text = String::new();
        for name in &self.path {
            text += name;
            text.push('.');
        }
        text + last
    }
}

impl<'a> Grammar<'a> {
    /// A select list, and the levels that it makes.
    pub(super) fn select(
        &mut self,
        section: Section,
        relation: &'a Relation,
        depth: usize,
        path: &[String],
        levels: &mut Vec<Level<'a>>,
    ) -> String {
        let own = levels.len();
        levels.push(Level {
            path: path.to_vec(),
            ..Level::plain(relation)
        });
        let mut items = Vec::new();
        if section == Section::Aggregates && self.chance(8) {
            levels[own].grouped = true;
            return "count".to_owned();
        }
        if section == Section::Aggregates {
            let aggregates = self.aggregates(relation);
            levels[own].grouped = aggregates.iter().any(|item| item.contains("()"));
            items.extend(aggregates);
        } else if self.chance(25) {
            items.push("*".to_owned());
        }
        let embeds = match depth {
            0 => 0,
            _ if section == Section::Embeds && path.is_empty() => self.rng.usize(1..3),
            _ => self.rng.usize(0..2),
        };
        let plain = match embeds {
            0 if items.is_empty() => self.rng.usize(1..5),
            _ if !path.is_empty() => self.rng.usize(1..3),
            _ if section == Section::Aggregates => self.rng.usize(0..2),
            _ => self.rng.usize(0..3),
        };
        for _ in 0..plain {
            let mut item = self.item(relation);
            // An index is read as a key, or not at all, where `)` follows it.
            if !path.is_empty()
                && item.ends_with(|c: char| c.is_ascii_digit())
                && item.contains("->")
                && !item.contains("::")
            {
                item += "::text";
            }
            items.push(item);
        }
        if !levels[own].grouped {
            for _ in 0..embeds {
                items.extend(self.embed(section, relation, depth, path, levels));
            }
        }
        if items.is_empty() {
            items.push("*".to_owned());
        }
        self.rng.shuffle(&mut items);
        items.join(",")
    }

    fn item(&mut self, relation: &'a Relation) -> String {
        let mut text = String::new();
        if self.chance(20) {
            text += self.word(&["a", "alias", "\"an alias\"", "größe", "x1"]);
            text.push(':');
        }
        text += &self.any_field(relation);
        if self.chance(12) {
            text += "::";
            text += self.word(&[
                "text",
                "varchar",
                "json",
                "jsonb",
                "int",
                "numeric",
                "timestamptz",
                "date",
                "bool",
                "float8",
                "mood",
            ]);
        }
        text
    }

    fn aggregates(&mut self, relation: &'a Relation) -> Vec<String> {
        let mut items = Vec::new();
        for _ in 0..self.rng.usize(1..3) {
            let alias = if self.chance(50) {
                format!("a{}:", items.len())
            } else {
                String::new()
            };
            let cast = if self.chance(15) { "::text" } else { "" };
            let item = match self.rng.u8(0..6) {
                0 | 1 => format!("{alias}count(){cast}"),
                _ => {
                    let column = self.pick(&relation.columns);
                    let name = quoted(column.name.as_str());
                    let function = self.word(&["sum", "avg", "count", "max", "min"]);
                    let before = if self.chance(12) { "::numeric" } else { "" };
                    format!("{alias}{name}{before}.{function}(){cast}")
                }
            };
            items.push(item);
        }
        items
    }

    /// `alias:target!hint!inner(…)`, and often its parameters' names.
    fn embed(
        &mut self,
        section: Section,
        relation: &'a Relation,
        depth: usize,
        path: &[String],
        levels: &mut Vec<Level<'a>>,
    ) -> Option<String> {
        let world = self.world;
        let edges = world.edges(relation);
        let mut edges: Vec<_> = edges
            .into_iter()
            .filter(|edge| edge.relation.schema == relation.name.schema)
            .collect();
        let spread = section == Section::Spreads || self.chance(5);
        if spread {
            // Those of many rows are newer than what the router is compared with.
            edges.retain(|edge| edge.to_one);
        }
        // Two embeds of one name are told apart by aliases.
        edges.retain(|edge| {
            let bare = edge.text.split('!').next().unwrap_or_default();
            let mut beside = levels
                .iter()
                .filter(|level| level.path.len() == path.len() + 1);
            !beside.any(|level| level.path.starts_with(path) && level.bare == bare)
        });
        if edges.is_empty() {
            return None;
        }
        let edge = self.pick(&edges).clone();
        let target = &world.catalog.relations[&edge.relation];
        let alias = !spread && self.chance(25);
        let alias = alias.then(|| format!("e{}", levels.len()));
        let bare = edge.text.split('!').next().unwrap_or_default().to_owned();
        let name = alias.clone().unwrap_or_else(|| quoted(&bare));
        let mut text = match (&alias, spread) {
            (_, true) => "...".to_owned(),
            (Some(alias), _) => format!("{alias}:"),
            (None, _) => String::new(),
        };
        match edge.text.split_once('!') {
            Some((target, hint)) => text += &format!("{}!{hint}", quoted(target)),
            None => text += &quoted(&edge.text),
        }
        match self.rng.u8(0..10) {
            0..3 => text += "!inner",
            3 => text += "!left",
            _ => {}
        }
        let mut below = path.to_vec();
        below.push(name);
        let own = levels.len();
        let items = match self.rng.u8(0..20) {
            0 if !spread => {
                levels.push(Level {
                    path: below,
                    ..Level::plain(target)
                });
                String::new()
            }
            1 if !spread => {
                levels.push(Level {
                    path: below,
                    grouped: true,
                    ..Level::plain(target)
                });
                "count".to_owned()
            }
            _ => {
                let section = if section == Section::Spreads {
                    Section::Spreads
                } else {
                    Section::Embeds
                };
                self.select(section, target, depth - 1, &below, levels)
            }
        };
        levels[own].to_many = !edge.to_one;
        levels[own].bare = bare;
        levels[own].inner = text.contains("!inner");
        Some(format!("{text}({items})"))
    }
}
