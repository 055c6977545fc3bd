# Prints the email in a token that PyJWT accepts.
from os import environ

import jwt

key = jwt.PyJWKClient(environ["KEYS"]).get_signing_key_from_jwt(environ["TOKEN"])
claims = jwt.decode(
    environ["TOKEN"],
    key.key,
    algorithms=[environ["ALGORITHM"]],
    issuer=environ["ISSUER"],
    audience=environ["AUDIENCE"],
)
print(claims["email"])
