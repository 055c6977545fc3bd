// This file is a program that knows the API by its document alone: every path,
// body and answer here has a type that openapi-typescript made of it, and tsc
// refuses what the document does not have. A failed check ends it with an error.

import assert from 'node:assert/strict'
import createClient from 'openapi-fetch'
import type { paths } from './api.js'

const { BASE, EMAIL, PASSWORD } = process.env as Record<string, string>
const api = createClient<paths>({ baseUrl: BASE })

const login = await api.POST('/api/v1/auth/login', { body: { email: EMAIL, password: PASSWORD } })
assert.ok(login.data, `login: ${JSON.stringify(login.error)}`)
const old = login.data.refresh_token

const next = await api.POST('/api/v1/auth/refresh', { body: { refresh_token: old } })
assert.ok(next.data, `refresh: ${JSON.stringify(next.error)}`)
assert.equal(next.data.expires_in, 900)

const users = await api.GET('/api/v1/auth/users', {
	headers: { Authorization: `Bearer ${next.data.access_token}` },
	params: { query: { limit: 1 } },
})
assert.ok(users.data, `users: ${JSON.stringify(users.error)}`)
assert.deepEqual([users.data.total, users.data.users[0].email, users.data.users[0].role], [2, EMAIL, 'superadmin'])
assert.ok(users.data.next)

const group = await api.GET('/api/v1/groups/{id}', {
	headers: { Authorization: `Bearer ${next.data.access_token}` },
	params: { path: { id: 'nobody' } },
})
assert.equal(group.error?.code, 'group_not_found')

const reuse = await api.POST('/api/v1/auth/refresh', { body: { refresh_token: old } })
assert.equal(reuse.error?.code, 'invalid_token')

// @ts-expect-error: the document says that a login needs a password.
const empty = await api.POST('/api/v1/auth/login', { body: { email: EMAIL } })
const faults = empty.error as { code: string; field?: string }
assert.deepEqual([empty.response.status, faults.code, faults.field], [422, 'invalid_field', 'password'])
