// A day in the CRM through @supabase/supabase-js, as its users write it.
// RINGFENCE_URL and RINGFENCE_KEY name the data API and a tenant's key;
// OTHER_KEY is another tenant's.

import assert from 'node:assert/strict'
import { createClient } from '@supabase/supabase-js'

// Of the client only the data API is used here; its real-time part would ask
// for a WebSocket, which node has from version 22.
const options = {
  auth: { persistSession: false, autoRefreshToken: false },
  realtime: { transport: class {} },
}
const db = createClient(process.env.RINGFENCE_URL, process.env.RINGFENCE_KEY, options)
const other = createClient(process.env.RINGFENCE_URL, process.env.OTHER_KEY, options)

/** The data of an answer that must be none of an error. */
async function ok(query, status = 200) {
  const answer = await query
  assert.equal(answer.error, null, JSON.stringify(answer.error))
  assert.equal(answer.status, status)
  return answer
}

async function refused(query, status, code) {
  const answer = await query
  assert.equal(answer.data, null)
  assert.deepEqual([answer.status, answer.error.code], [status, code])
  return answer.error
}

async function list() {
  const { data } = await ok(
    db
      .from('companies')
      .select('id, name, country:countries(name), contacts(email, full_name), deals!inner(title, stage:pipeline_stages(name))')
      .order('id')
      .order('email', { referencedTable: 'contacts' })
      .limit(5)
  )
  assert.ok(data.length > 0)
  for (const company of data) {
    assert.ok(company.deals.length > 0 && company.deals[0].stage.name)
    assert.ok(!('tenant_id' in company))
  }
  const { data: empty } = await ok(db.from('companies').select().eq('name', 'no such company'))
  assert.deepEqual(empty, [])
}

async function countAndPage() {
  const { count } = await ok(db.from('companies').select('*', { count: 'exact', head: true }))
  assert.ok(count > 4)
  const seen = []
  for (let from = 0; from < count; from += 4) {
    const page = db.from('companies').select('id', { count: 'exact' }).order('id').range(from, from + 3)
    const answer = await ok(page, 206)
    assert.equal(answer.count, count)
    seen.push(...answer.data.map((row) => row.id))
  }
  assert.equal(new Set(seen).size, count)
  await refused(db.from('companies').select('*', { count: 'exact' }).range(count + 1, count + 9), 416, 'PGRST103')
  const { data: counted } = await ok(db.from('companies').select('name, contacts(count)').order('id').limit(1))
  assert.equal(typeof counted[0].contacts[0].count, 'number')
}

async function filters() {
  const contacts = () => db.from('contacts').select('id, email')
  const { data: all } = await ok(contacts().order('id'))
  const [first, second] = all
  const emails = async (query) => (await ok(query.order('id'))).data.map((row) => row.email)
  assert.deepEqual(await emails(contacts().in('id', [first.id, second.id])), [first.email, second.email])
  assert.deepEqual(await emails(contacts().or(`id.eq.${first.id},email.eq.${second.email}`)), [first.email, second.email])
  assert.deepEqual(await emails(contacts().ilike('email', first.email.toUpperCase())), [first.email])
  assert.equal((await emails(contacts().not('id', 'eq', first.id))).length, all.length - 1)
  assert.equal((await emails(contacts().is('birthday', null))).length + (await emails(contacts().not('birthday', 'is', null))).length, all.length)
}

async function write() {
  const { data: made } = await ok(
    db.from('companies').insert({ name: 'Story Ltd', domain: 'story.example', tags: ['a', 'b'], address: { city: 'Oslo' } }).select().single(),
    201
  )
  assert.deepEqual([made.name, made.tags, made.address], ['Story Ltd', ['a', 'b'], { city: 'Oslo' }])
  const people = ['ada', 'bob', 'cy'].map((name) => ({ company_id: made.id, first_name: name, last_name: 'Story', email: `${name}@story.example` }))
  const { data: contacts } = await ok(db.from('contacts').insert(people).select('id, email, companies(name)'), 201)
  assert.deepEqual(contacts.map((row) => row.companies.name), ['Story Ltd', 'Story Ltd', 'Story Ltd'])

  const again = { ...people[0], title: 'CTO' }
  const fresh = { ...people[0], first_name: 'dee', email: 'dee@story.example', title: 'CEO' }
  const upsert = db.from('contacts').upsert([again, fresh], { onConflict: 'email', count: 'exact' }).select('email, title')
  const upserted = await ok(upsert, 201)
  assert.equal(upserted.count, 2)
  assert.deepEqual(upserted.data, [{ email: 'ada@story.example', title: 'CTO' }, { email: 'dee@story.example', title: 'CEO' }])
  const kept = db.from('contacts').upsert({ ...people[1], title: 'lost' }, { onConflict: 'email', ignoreDuplicates: true }).select()
  assert.deepEqual((await ok(kept, 201)).data, [])

  const { data: updated } = await ok(db.from('contacts').update({ phone: '+47 1' }).eq('company_id', made.id).select('phone'))
  assert.deepEqual(updated.map((row) => row.phone), Array(4).fill('+47 1'))
  assert.equal((await ok(db.from('contacts').update({ phone: null }).eq('email', 'cy@story.example'), 204)).data, null)

  assert.deepEqual((await ok(other.from('contacts').select().eq('company_id', made.id))).data, [])
  assert.deepEqual((await ok(other.from('contacts').delete().eq('email', 'ada@story.example').select())).data, [])
  await errors(made, people)

  const { count } = await ok(db.from('contacts').delete({ count: 'exact' }).eq('company_id', made.id), 204)
  assert.equal(count, 4)
  await ok(db.from('companies').delete().eq('id', made.id).select().single())
}

async function errors(company, people) {
  const twice = await refused(db.from('contacts').insert(people[0]), 409, '23505')
  assert.match(twice.message, /duplicate key/)
  assert.equal(twice.details, 'Key (email)=(ada@story.example) already exists.')
  const orphan = db.from('contacts').insert({ ...people[0], email: 'eve@story.example', company_id: -1 })
  assert.equal((await refused(orphan, 409, '23503')).details, 'Key (company_id)=(-1) is not present in table "companies".')
  await refused(db.from('companies').insert({ name: 'x', nothing: 1 }), 400, 'PGRST204')
  await refused(db.from('companies').insert({ name: '' }), 400, '23514')
  await refused(db.from('companies').select('nothing'), 400, '42703')
  await refused(db.from('companies').select('*, nothing(*)'), 400, 'PGRST200')
  await refused(db.from('nothing').select(), 404, 'PGRST205')
  await refused(db.rpc('nothing'), 404, 'PGRST202')
  await refused(db.from('contacts').select().eq('company_id', company.id).single(), 406, 'PGRST116')
  await refused(db.from('contacts').update({ title: 'x' }).eq('company_id', company.id).maxAffected(1), 400, 'PGRST124')
  const { data: nobody } = await ok(db.from('contacts').select().eq('email', 'nobody@story.example').maybeSingle())
  assert.equal(nobody, null)
}

async function functions() {
  const { data: summary } = await ok(db.rpc('pipeline_summary'))
  assert.ok(summary.length > 1 && 'weighted_amount' in summary[0])
  const { data: stage } = await ok(db.rpc('pipeline_summary', {}, { get: true }).select('stage, deals').limit(1).single())
  assert.deepEqual(stage, { stage: summary[0].stage, deals: summary[0].deals })
  const { data: deal } = await ok(db.from('deals').select('id, stage_id').order('id').limit(1).single())
  const { data: moved } = await ok(db.rpc('move_deal', { deal: deal.id, stage: 2 }))
  assert.equal(moved.stage_id, 2)
  await ok(db.rpc('move_deal', { deal: deal.id, stage: deal.stage_id }))
  const failed = await refused(db.rpc('move_deal', { deal: -1, stage: 1 }), 500, 'P0002')
  assert.equal(failed.message, 'no such deal or stage')
}

await list()
await countAndPage()
await filters()
await write()
await functions()
console.log('the story of supabase-js went well')
process.exit(0)
