// This file is a web application in JavaScript: openid-client 6 does all that
// a client does in one session, and refuses what it has to refuse. A failed
// check ends it with an error. What it works with comes from the environment.

import assert from 'node:assert/strict'
import * as oauth from 'oauth4webapi'
import * as client from 'openid-client'

const { ISSUER, ID, SECRET, METHOD, CALLBACK, BYE, AUDIENCE, EMAIL, PASSWORD } = process.env
const methods = { basic: client.ClientSecretBasic, post: client.ClientSecretPost, none: client.None }
const insecure = { execute: [client.allowInsecureRequests] } // http on loopback

// signIn does what a browser does from the authorization request to the
// redirect with the code: it fills in the login form, and says yes where the
// server asks whether to continue.
async function signIn(address) {
	let cookie = '', body
	for (let page = 0; page < 6; page++) {
		const method = body ? 'POST' : 'GET'
		const answer = await fetch(address, { method, body, headers: { cookie }, redirect: 'manual' })
		cookie = answer.headers.getSetCookie()[0]?.split(';')[0] ?? cookie
		body = undefined
		const text = await answer.text(), location = answer.headers.get('location')
		if (location?.startsWith(CALLBACK)) return new URL(location)
		const action = location ?? text.match(/<form[^>]*\baction="([^"]*)"/)?.[1]
			.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(code)).replaceAll('&amp;', '&')
		assert.ok(action, `${answer.status} at ${address}:\n${text}`)
		address = new URL(action, address)
		const fields = /login/.test(action) ? { email: EMAIL, password: PASSWORD } : { answer: 'yes' }
		if (!location) body = new URLSearchParams(fields)
	}
	assert.fail(`no way back from ${address}`)
}

const config = await client.discovery(new URL(ISSUER), ID, undefined, methods[METHOD](SECRET), insecure)
assert.ok(config.serverMetadata().supportsPKCE())

const verifier = client.randomPKCECodeVerifier()
const checks = {
	pkceCodeVerifier: verifier,
	expectedNonce: client.randomNonce(),
	expectedState: client.randomState(),
	maxAge: 300,
	idTokenExpected: true,
}
const back = await signIn(client.buildAuthorizationUrl(config, {
	redirect_uri: CALLBACK,
	scope: 'openid email profile groups',
	code_challenge: await client.calculatePKCECodeChallenge(verifier),
	code_challenge_method: 'S256',
	nonce: checks.expectedNonce,
	state: checks.expectedState,
	max_age: checks.maxAge,
}))

// An answer that names another issuer, or none, is a mix-up (RFC 9207).
for (const iss of ['https://evil.example', null]) {
	const mixed = new URL(back)
	iss ? mixed.searchParams.set('iss', iss) : mixed.searchParams.delete('iss')
	const grant = client.authorizationCodeGrant(config, mixed, checks)
	await assert.rejects(grant, (e) => /"iss"/.test(e.cause.message))
}

// at_hash, nonce, auth_time, the signature and the rest are checked in here.
client.enableNonRepudiationChecks(config)
const tokens = await client.authorizationCodeGrant(config, back, checks)
const claims = tokens.claims()
assert.equal(claims.email, EMAIL)
assert.equal(claims.aud, ID)
assert.notEqual(claims.name, '')
const info = await client.fetchUserInfo(config, tokens.access_token, claims.sub)
assert.equal(info.email, EMAIL)
assert.equal(info.preferred_username, claims.preferred_username)

// The audience of this client takes its access tokens (RFC 9068).
const headers = { authorization: `Bearer ${tokens.access_token}` }
const call = new Request('http://api.example/', { headers })
const access = await oauth.validateJwtAccessToken(config.serverMetadata(), call, AUDIENCE,
	{ [oauth.allowInsecureRequests]: true })
assert.equal(access.client_id, ID)

const fresh = await client.refreshTokenGrant(config, tokens.refresh_token)
assert.equal(fresh.claims().sub, claims.sub)
assert.equal(fresh.claims().auth_time, claims.auth_time)
assert.deepEqual(fresh.claims().groups, claims.groups)
assert.notEqual(fresh.refresh_token, tokens.refresh_token)

if (METHOD !== 'none') {
	const state = await client.tokenIntrospection(config, fresh.access_token)
	assert.equal(state.active, true)
	assert.equal(state.sub, claims.sub)
}
await client.tokenRevocation(config, fresh.refresh_token)
if (METHOD !== 'none') {
	assert.deepEqual(await client.tokenIntrospection(config, fresh.access_token), { active: false })
}
await assert.rejects(client.fetchUserInfo(config, fresh.access_token, claims.sub))
await assert.rejects(client.refreshTokenGrant(config, fresh.refresh_token), { error: 'invalid_grant' })

// Sign out: the hint is enough, whatever cookie the browser has.
const end = client.buildEndSessionUrl(config, {
	id_token_hint: tokens.id_token, post_logout_redirect_uri: BYE, state: 'so long' })
const answer = await fetch(end, { redirect: 'manual' })
const gone = new URL(answer.headers.get('location'))
assert.equal(gone.origin + gone.pathname, BYE)
assert.deepEqual([...gone.searchParams], [['state', 'so long']])
