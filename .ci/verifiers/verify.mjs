// Prints the email in a token that the npm package jose accepts.
import { createRemoteJWKSet, jwtVerify } from 'jose'

const { KEYS, ISSUER, AUDIENCE, ALGORITHM, TOKEN } = process.env
const { payload } = await jwtVerify(TOKEN, createRemoteJWKSet(new URL(KEYS)), {
  issuer: ISSUER,
  audience: AUDIENCE,
  algorithms: [ALGORITHM],
})
console.log(payload.email)
