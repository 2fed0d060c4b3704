// An application of one tenant that was adopted, through @supabase/supabase-js,
// as its users write it. RINGFENCE_URL and RINGFENCE_KEY name the data API and
// the key of the tenant whose rows were imported; OTHER_KEY is another tenant's;
// SERVICE_KEY a service key of the first; USER_TOKEN is a token of that tenant's user ADA.

import assert from 'node:assert/strict'
import { createClient } from '@supabase/supabase-js'

const options = (token) => ({
  auth: { persistSession: false, autoRefreshToken: false },
  realtime: { transport: class {} },
  global: token ? { headers: { Authorization: `Bearer ${token}` } } : {},
})
const { RINGFENCE_URL: url, RINGFENCE_KEY: key, OTHER_KEY: otherKey, SERVICE_KEY: serviceKey, USER_TOKEN: token, ADA: ada } = process.env
const db = createClient(url, key, options())
const user = createClient(url, key, options(token))
const other = createClient(url, otherKey, options())
const service = createClient(url, serviceKey, options())

/** The data of an answer that must be none of an error. */
async function ok(query) {
  const { data, error } = await query
  assert.equal(error, null, JSON.stringify(error))
  return data
}

// What was imported, with its own ids, embedded along its own foreign keys.
const projects = await ok(db.from('projects').select('id, title, seen, notes(id, body), owner:profiles(username, country:countries(name))').order('id'))
assert.deepEqual(projects, [
  { id: 1, title: 'Engine', seen: 'team', notes: [{ id: 1, body: 'first' }, { id: 2, body: 'second' }], owner: { username: 'ada', country: { name: 'England' } } },
  { id: 2, title: 'Notes', seen: 'private', notes: [], owner: { username: 'bob', country: null } },
])
assert.ok(!('tenant_id' in (await ok(db.from('projects').select().limit(1).single()))))
assert.deepEqual(await ok(db.from('project_notes').select('title, body').order('body')), [
  { title: 'Engine', body: 'first' },
  { title: 'Engine', body: 'second' },
])
const { count } = await db.from('events').select('*', { count: 'exact', head: true })
assert.equal(count, 3)

// Ids go on after the source's; enumerations and defaults are as they were.
const made = await ok(db.from('projects').insert({ title: 'New', owner: ada }).select().single())
assert.deepEqual([made.id > 2, made.seen], [true, 'private'])
const note = await ok(db.from('notes').insert({ project_id: made.id, body: 'third' }).select('id, projects(title)').single())
assert.deepEqual(note, { id: note.id, projects: { title: 'New' } })
assert.ok(note.id > 2)
await ok(db.from('events').insert({ id: 9, at: '2026-06-01T00:00:00Z', what: 'went on' }))

// Foreign keys hold within the tenant; deletes cascade.
const orphan = await db.from('notes').insert({ project_id: 999, body: 'x' })
assert.equal(orphan.error.code, '23503')
await ok(db.from('projects').delete().eq('id', made.id))
assert.deepEqual(await ok(db.from('notes').select().eq('id', note.id)), [])

// The application's own policies: everyone sees profiles, a user changes the own one.
assert.equal((await ok(db.from('profiles').select())).length, 2)
const rename = (client) => client.from('profiles').update({ country: 'FR' }).in('username', ['ada', 'bob']).select('username')
assert.deepEqual(await ok(rename(db)), [])
assert.deepEqual(await ok(rename(user)), [{ username: 'ada' }])
const intruder = await db.from('profiles').insert({ id: '00000000-0000-4000-8000-000000000009', username: 'eve' })
assert.equal(intruder.error.code, '42501')

// A function with its owner's rights counts this tenant's rows alone.
assert.equal(await ok(db.rpc('all_notes')), 2)
assert.equal(await ok(other.rpc('all_notes')), 0)

// What row security closed, and what was revoked, is for service keys alone.
assert.deepEqual(await ok(db.from('api_keys').select()), [])
assert.equal((await db.from('api_keys').insert({ secret: 'mine' })).error.code, '42501')
assert.equal((await db.rpc('forget_keys')).error.code, '42501')
assert.equal((await ok(service.from('api_keys').select())).length, 1)
await ok(service.rpc('forget_keys'))
assert.deepEqual(await ok(service.from('api_keys').select()), [])

// Another tenant sees nothing of it, and may have the same ids.
for (const table of ['projects', 'notes', 'profiles', 'events', 'project_notes']) {
  assert.deepEqual(await ok(other.from(table).select()), [], table)
}
assert.deepEqual(await ok(other.from('projects').insert({ id: 1, title: 'Same id' }).select('id')), [{ id: 1 }])
await ok(other.from('projects').delete().eq('id', 1))
for (const hidden of ['note_counts', 'schema_migrations', 'events_2026']) {
  assert.equal((await db.from(hidden).select()).error.code, 'PGRST205', hidden)
}
console.log('the story of the adopted application went well')
process.exit(0)
