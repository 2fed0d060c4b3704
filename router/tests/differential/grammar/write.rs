//! Inserts, upserts, updates and deletes. Most are rolled back; those that
//! stay are followed by a comparison of all rows.

use schema::catalog::{Column, Relation, RelationKind};
use serde_json::{Map, Value, json};

use super::Grammar;
use super::select::Level;
use crate::case::{Case, Section};
use crate::world::quoted;

impl<'a> Grammar<'a> {
    fn write(&mut self, section: Section, method: &'static str, relation: &Relation) -> Case {
        let mut case = Case::get(&format!("/{}", relation.name.name.as_str()));
        case.section = section;
        case.method = method;
        case
    }

    /// A relation that can be written to, or sometimes one that can't.
    fn target(&mut self) -> &'a Relation {
        let world = self.world;
        let name = self.word(&[
            "people",
            "shows",
            "venues",
            "rooms",
            "casting",
            "labels",
            "notes",
            "posters",
            "Großer Saal",
            "open_shows",
            "counts",
            "show_labels",
            "kinds",
        ]);
        world.relation(name)
    }

    pub(super) fn insert(&mut self) -> Case {
        let relation = self.target();
        let mut case = self.write(Section::Insert, "POST", relation);
        let many = self.chance(40);
        let columns = self.written(relation, true);
        let rows = if many { self.rng.usize(0..4) } else { 1 };
        let rows: Vec<Value> = (0..rows).map(|_| self.row(relation, &columns)).collect();
        self.body(&mut case, relation, rows, many, &columns);
        let mut prefer = Vec::new();
        if self.chance(20) {
            prefer.push("missing=default".to_owned());
        }
        self.finish(case, relation, prefer, true)
    }

    pub(super) fn upsert(&mut self) -> Case {
        let mut relation = self.target();
        if relation.kind == RelationKind::View {
            // Its unique key starts with a column that the view does not have.
            relation = self.world.relation("shows");
        }
        if self.chance(25) {
            return self.put(relation);
        }
        let mut case = self.write(Section::Upsert, "POST", relation);
        let mut columns = self.written(relation, true);
        for column in &relation.columns {
            if relation.primary_key.contains(&column.name)
                && !columns.iter().any(|c| c.name == column.name)
            {
                columns.push(column);
            }
        }
        let many = self.chance(40);
        let rows = if many { self.rng.usize(1..3) } else { 1 };
        let rows: Vec<Value> = (0..rows).map(|_| self.row(relation, &columns)).collect();
        self.body(&mut case, relation, rows, many, &columns);
        if self.chance(25) {
            let target = match relation.name.name.as_str() {
                "people" => "name",
                "venues" => "name,city",
                "rooms" => "venue_id,number",
                "labels" => "name",
                _ => "id",
            };
            case.params.push(("on_conflict".into(), target.into()));
        }
        let resolution = self.word(&[
            "resolution=merge-duplicates",
            "resolution=ignore-duplicates",
        ]);
        self.finish(case, relation, vec![resolution.to_owned()], true)
    }

    fn put(&mut self, relation: &'a Relation) -> Case {
        let mut case = self.write(Section::Upsert, "PUT", relation);
        let columns: Vec<&Column> = relation.columns.iter().filter(|c| !c.generated).collect();
        let mut row = self.row(relation, &columns);
        for column in &relation.columns {
            if relation.primary_key.contains(&column.name) {
                let value = self.raw(relation, column);
                case.params
                    .push((quoted(column.name.as_str()), format!("eq.{value}")));
                if self.chance(90) {
                    row[column.name.as_str()] = match value.parse::<i64>() {
                        Ok(number) => json!(number),
                        Err(_) => json!(value),
                    };
                }
            }
        }
        if self.chance(8) {
            case.params.push(("limit".into(), "1".into()));
        }
        case.header("Content-Type", "application/json");
        case.body = Some(row.to_string());
        self.finish(case, relation, Vec::new(), false)
    }

    pub(super) fn update(&mut self) -> Case {
        let relation = self.target();
        let mut case = self.write(Section::Update, "PATCH", relation);
        let columns = self.written(relation, false);
        let row = self.row(relation, &columns);
        let many = self.chance(5);
        self.body(&mut case, relation, vec![row], many, &columns);
        self.chosen(relation, &mut case);
        self.finish(case, relation, Vec::new(), false)
    }

    pub(super) fn delete(&mut self) -> Case {
        let relation = self.target();
        let mut case = self.write(Section::Delete, "DELETE", relation);
        self.chosen(relation, &mut case);
        if self.chance(10) {
            case.header("Content-Type", "application/json");
            case.body = Some("{}".into());
        }
        self.finish(case, relation, Vec::new(), false)
    }

    /// Conditions on the rows that are changed.
    fn chosen(&mut self, relation: &'a Relation, case: &mut Case) {
        match self.rng.u8(0..10) {
            0 => {}
            1..5 => self.conditions(Section::Filters, &[Level::plain(relation)], case),
            5 => self.conditions(Section::Logic, &[Level::plain(relation)], case),
            _ => {
                let key = self.world.key(relation);
                let column = key[0];
                let value = self.raw(relation, column);
                case.params
                    .push((quoted(column.name.as_str()), format!("eq.{value}")));
            }
        }
    }

    /// Some columns, and mostly those without which no row can be.
    fn written(&mut self, relation: &'a Relation, new: bool) -> Vec<&'a Column> {
        let mut columns = Vec::new();
        for column in &relation.columns {
            let needed = !column.nullable && column.default.is_none();
            let chance = match (needed && new, column.generated) {
                (_, true) => 2,
                (true, _) => 95,
                (false, _) => 25,
            };
            if self.chance(chance) {
                columns.push(column);
            }
        }
        columns
    }

    fn row(&mut self, relation: &Relation, columns: &[&Column]) -> Value {
        let mut row = Map::new();
        for column in columns {
            let fresh =
                relation.primary_key.len() == 1 && relation.primary_key.contains(&column.name);
            let value = if fresh && self.chance(50) {
                json!(self.rng.u8(40..90))
            } else {
                self.json_value(relation, column)
            };
            row.insert(column.name.as_str().to_owned(), value);
        }
        if self.chance(2) {
            row.insert("nothing".into(), json!(1));
        }
        Value::Object(row)
    }

    fn body(
        &mut self,
        case: &mut Case,
        relation: &Relation,
        mut rows: Vec<Value>,
        many: bool,
        columns: &[&Column],
    ) {
        if self.chance(15) {
            let names: Vec<String> = columns
                .iter()
                .map(|c| format!("\"{}\"", c.name.as_str()))
                .collect();
            if !names.is_empty() {
                case.params.push(("columns".into(), names.join(",")));
                // Keys beside the columns, and keys that are missing.
                for row in &mut rows {
                    if let Value::Object(members) = row
                        && self.chance(40)
                    {
                        let first = members.keys().next().cloned();
                        if let Some(first) = first {
                            members.shift_remove(&first);
                        }
                        members.insert("beside".into(), json!("x"));
                    }
                }
            }
        }
        if case.method == "POST"
            && many
            && !rows.is_empty()
            && !columns.is_empty()
            && self.chance(12)
        {
            case.header("Content-Type", "text/csv");
            case.body = Some(csv(&rows, columns));
            return;
        }
        let _ = relation;
        case.header("Content-Type", "application/json");
        let body = match many {
            true => Value::Array(rows),
            false => rows.into_iter().next().unwrap_or(json!({})),
        };
        case.body = Some(body.to_string());
    }

    /// What comes back, and how it ends.
    fn finish(
        &mut self,
        mut case: Case,
        relation: &'a Relation,
        mut prefer: Vec<String>,
        new: bool,
    ) -> Case {
        // Before version 13 a tree of the write applied to what it returns, too.
        let trees = ["and", "or", "not.and", "not.or"];
        let in_trees = trees.iter().any(|key| case.param(key).is_some());
        let returning = self.rng.u8(if in_trees { 6 } else { 0 }..10);
        match returning {
            0..6 => {
                prefer.push("return=representation".into());
                if self.chance(40) {
                    let mut levels = Vec::new();
                    let section = Section::Select;
                    let depth = usize::from(self.chance(50));
                    let select = self.select(section, relation, depth, &[], &mut levels);
                    case.params.push(("select".into(), select));
                }
                case.ordered = false;
                if self.chance(10) {
                    let accept = self.word(&[
                        "application/vnd.pgrst.object+json",
                        "text/csv",
                        "application/vnd.pgrst.object+json;nulls=stripped",
                    ]);
                    case.header("Accept", accept);
                }
            }
            6 => prefer.push("return=headers-only".into()),
            7 => {
                prefer.push("return=minimal".into());
                if self.chance(10) {
                    case.params.push(("select".into(), "*,nothing(*)".into()));
                }
            }
            _ => {}
        }
        if self.chance(10) {
            prefer.push("count=exact".into());
        }
        // Views have no numbers of their own to put back.
        let numbered = new && case.method == "POST";
        if self.chance(30) && !numbered || self.chance(15) {
            case.commits = true;
        } else {
            prefer.push("tx=rollback".into());
        }
        if !prefer.is_empty() {
            case.header("Prefer", prefer.join(", "));
        }
        case
    }
}

fn csv(rows: &[Value], columns: &[&Column]) -> String {
    let cell = |value: &Value| match value {
        Value::Null => "NULL".to_owned(),
        Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        other => format!("\"{}\"", other.to_string().replace('"', "\"\"")),
    };
    let header: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    let mut lines = vec![header.join(",")];
    for row in rows {
        let cells = columns.iter().map(|c| cell(&row[c.name.as_str()]));
        lines.push(cells.collect::<Vec<_>>().join(","));
    }
    lines.join("\n")
}
