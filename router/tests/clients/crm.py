"""A day in the CRM through postgrest, the Python client, as its users write it.

RINGFENCE_URL and RINGFENCE_KEY name the data API and a tenant's key;
OTHER_KEY is another tenant's.
"""

import os

from postgrest import APIError, CountMethod, ReturnMethod, SyncPostgrestClient


def client(key: str) -> SyncPostgrestClient:
    url = os.environ["RINGFENCE_URL"] + "/rest/v1"
    return SyncPostgrestClient(url, headers={"apikey": os.environ[key]})


db = client("RINGFENCE_KEY")
other = client("OTHER_KEY")


def refused(query, code: str) -> APIError:
    try:
        query.execute()
    except APIError as error:
        assert error.code == code, error
        return error
    raise AssertionError(f"{code} was expected")


def list_rows() -> None:
    shape = "id, name, country:countries(name), contacts(email, full_name), deals!inner(title, stage:pipeline_stages(name))"
    rows = db.from_("companies").select(shape).order("id").order("email", foreign_table="contacts").limit(5).execute().data
    assert rows and all(row["deals"][0]["stage"]["name"] for row in rows)
    assert all("tenant_id" not in row for row in rows)
    assert db.from_("companies").select("*").eq("name", "no such company").execute().data == []


def count_and_page() -> None:
    total = db.from_("companies").select("*", count=CountMethod.exact, head=True).execute().count
    assert total and total > 4
    seen = set()
    for start in range(0, total, 4):
        page = db.from_("companies").select("id", count=CountMethod.exact).order("id").range(start, start + 3).execute()
        assert page.count == total
        seen.update(row["id"] for row in page.data)
    assert len(seen) == total
    for method in (CountMethod.planned, CountMethod.estimated):
        assert db.from_("companies").select("id", count=method).limit(1).execute().count is not None


def filters() -> None:
    rows = db.from_("contacts").select("id, email").order("id").execute().data
    first, second = rows[:2]

    def emails(query) -> list[str]:
        return [row["email"] for row in query.order("id").execute().data]

    def contacts():
        return db.from_("contacts").select("id, email")

    both = [first["email"], second["email"]]
    assert emails(contacts().in_("id", [first["id"], second["id"]])) == both
    assert emails(contacts().or_(f"id.eq.{first['id']},email.eq.{second['email']}")) == both
    assert emails(contacts().ilike("email", first["email"].upper())) == both[:1]
    assert len(emails(contacts().not_.eq("id", first["id"]))) == len(rows) - 1


def write() -> None:
    made = db.from_("companies").insert({"name": "Novel Ltd", "tags": ["a", "b"], "address": {"city": "Oslo"}}).execute().data[0]
    assert (made["name"], made["tags"], made["address"]) == ("Novel Ltd", ["a", "b"], {"city": "Oslo"})
    people = [
        {"company_id": made["id"], "first_name": name, "last_name": "Novel", "email": f"{name}@novel.example"}
        for name in ("ada", "bob", "cy")
    ]
    assert len(db.from_("contacts").insert(people).execute().data) == 3
    again = [{**people[0], "title": "CTO"}, {**people[0], "first_name": "dee", "email": "dee@novel.example", "title": "CEO"}]
    titles = db.from_("contacts").upsert(again, on_conflict="email", count=CountMethod.exact).execute()
    assert titles.count == 2 and [row["title"] for row in titles.data] == ["CTO", "CEO"]

    changed = db.from_("contacts").update({"phone": "+47 1"}, count=CountMethod.exact).eq("company_id", made["id"]).execute()
    assert changed.count == 4 and {row["phone"] for row in changed.data} == {"+47 1"}
    silent = db.from_("contacts").update({"phone": None}, returning=ReturnMethod.minimal).eq("email", "cy@novel.example")
    assert silent.execute().data == []
    assert other.from_("contacts").select("*").eq("company_id", made["id"]).execute().data == []
    assert other.from_("contacts").delete().eq("email", "ada@novel.example").execute().data == []
    errors(made, people)

    gone = db.from_("contacts").delete(count=CountMethod.exact).eq("company_id", made["id"]).execute()
    assert gone.count == 4
    assert len(db.from_("companies").delete().eq("id", made["id"]).execute().data) == 1


def errors(company: dict, people: list[dict]) -> None:
    twice = refused(db.from_("contacts").insert(people[0]), "23505")
    assert twice.details == "Key (email)=(ada@novel.example) already exists.", twice.details
    refused(db.from_("contacts").insert({**people[0], "email": "eve@novel.example", "company_id": -1}), "23503")
    refused(db.from_("companies").insert({"name": "x", "nothing": 1}), "PGRST204")
    refused(db.from_("companies").select("nothing"), "42703")
    refused(db.from_("nothing").select("*"), "PGRST205")
    refused(db.rpc("nothing", {}), "PGRST202")
    refused(db.from_("contacts").select("*").eq("company_id", company["id"]).single(), "PGRST116")
    nobody = db.from_("contacts").select("*").eq("email", "nobody@novel.example").maybe_single().execute()
    assert nobody is None


def functions() -> None:
    summary = db.rpc("pipeline_summary", {}).execute().data
    assert len(summary) > 1 and "weighted_amount" in summary[0]
    stage = db.rpc("pipeline_summary", {}, get=True).select("stage, deals").limit(1).execute().data
    assert stage == [{"stage": summary[0]["stage"], "deals": summary[0]["deals"]}]
    deal = db.from_("deals").select("id, stage_id").order("id").limit(1).single().execute().data
    moved = db.rpc("move_deal", {"deal": deal["id"], "stage": 2}).execute().data
    assert moved["stage_id"] == 2
    db.rpc("move_deal", {"deal": deal["id"], "stage": deal["stage_id"]}).execute()
    assert refused(db.rpc("move_deal", {"deal": -1, "stage": 1}), "P0002").message == "no such deal or stage"


list_rows()
count_and_page()
filters()
write()
functions()
print("the story of postgrest-py went well")
