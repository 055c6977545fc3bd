package main

// This file is service tokens: long-lived secrets by which programs are known,
// their endpoints and their commands of the shell. A service token is nobody's
// session: this server's own endpoints refuse it as a bearer, and other
// services ask here whether it is good. The database holds hashes alone, and a
// revoked token has no row. Without this file and the lines marked
// `room: servicetokens` there are none.

import (
	"cmp"
	"encoding/hex"
	"errors"
	"regexp"
)

const servicePath = "/api/v1/auth/service-tokens"

// serviceTokenName is what new ones may be called: it can stand in a path, and
// as a client_id. Adopted ones may have any name.
var serviceTokenName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$`)

// --- what is stored ---

// serviceToken is a row of service_tokens without its hash, as it is stored and
// shown.
type serviceToken struct {
	seq         int64
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	Role        role     `json:"role"`
	OrgID       string   `json:"org_id"`
	Description string   `json:"description"`
	CreatedAt   unixTime `json:"created_at"`
}

const serviceTokenColumns = `seq, id, name, role, org_id, description, created_at`

// serviceTokenTargets are the scan targets for serviceTokenColumns.
func serviceTokenTargets(st *serviceToken) []any {
	return []any{&st.seq, &st.ID, &st.Name, &st.Role, &st.OrgID, &st.Description, &st.CreatedAt}
}

// serviceTokenNamed returns the living token of a name, or errNotFound.
func (t *queries) serviceTokenNamed(name string) (st serviceToken, err error) {
	err = t.get(`SELECT `+serviceTokenColumns+` FROM service_tokens WHERE name = $1`,
		[]any{name}, serviceTokenTargets(&st)...)
	return st, err
}

// serviceTokenBySecret returns the living token with this secret, and with this
// name unless that is empty; otherwise errNotFound. It takes the same time for
// each secret: one read of an index by its hashes, of which the time tells
// nothing that helps to guess.
func (s *store) serviceTokenBySecret(name, secret string) (st serviceToken, err error) {
	h := s.hashesOf(secret)
	err = s.reads.get(`SELECT `+serviceTokenColumns+` FROM service_tokens WHERE token_hash IN ($1, $2, $3)`,
		[]any{h[0], h[1], h[2]}, serviceTokenTargets(&st)...)
	if err == nil && name != "" && name != st.Name {
		err = errNotFound
	}
	return st, err
}

// serviceHolder is serviceTokenBySecret for the token endpoint, where a name is
// a client_id: a user without an account, called like the token.
func (s *store) serviceHolder(name, secret string) (user, error) {
	if name == "" {
		return user{}, errNotFound
	}
	st, err := s.serviceTokenBySecret(name, secret)
	return user{id: st.ID, displayName: st.Name, role: st.Role, orgID: st.OrgID}, err
}

// serviceTokenLives reports whether the token with this id was not revoked.
func (s *store) serviceTokenLives(id string) (lives bool, err error) {
	err = s.reads.get(`SELECT EXISTS (SELECT 1 FROM service_tokens WHERE id = $1)`, []any{id}, &lives)
	return lives, err
}

// serviceNameExists reports whether a service token is called so.
func (s *store) serviceNameExists(name string) (bool, error) {
	_, err := s.reads.serviceTokenNamed(name)
	if errors.Is(err, errNotFound) {
		return false, nil
	}
	return err == nil, err
}

// serviceTokensWhere is the list of the tokens of the organisations that f
// names.
func serviceTokensWhere(f userFilter) rowList[serviceToken] {
	where, args := f.where()
	return rowList[serviceToken]{"service_tokens", serviceTokenColumns, where, args, serviceTokenTargets}
}

// --- endpoints ---

// madeServiceToken answers a creation. It is the only answer with the secret,
// which it lacks when the name existed before.
type madeServiceToken struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	Token         string `json:"token,omitempty"`
	AlreadyExists bool   `json:"already_exists"`
}

// validServiceToken answers the validation of a right secret.
type validServiceToken struct {
	Valid bool   `json:"valid"`
	Name  string `json:"name"`
	Role  string `json:"role"`
	OrgID string `json:"org_id"`
}

// handleListServices writes the tokens of the caller's organisation, to a
// superadmin those of all.
func (s *server) handleListServices(x *exchange, p principal) error {
	filter := userFilter{everyOrg: p.role == superadmin, orgID: p.orgID}
	return streamList(x, `{"tokens":[`, serviceTokensWhere(filter), asIs)
}

// handleMakeService makes a token for the caller's organisation, or for
// a superadmin for any.
func (s *server) handleMakeService(x *exchange, p principal) error {
	st := serviceToken{Role: operator, OrgID: p.orgID}
	err := decode(x,
		need("name", &st.Name),
		maybe("role", &st.Role),
		maybe("org_id", &st.OrgID),
		maybe("description", &st.Description))
	if err != nil {
		return err
	}
	made, err := s.createServiceToken(x.caller(p), st)
	if err != nil {
		return err
	}
	return writeJSON(x, made)
}

// createServiceToken makes a token of a role that the actor may grant, unless
// its name exists. One that exists where the actor cannot see it is told of,
// because names are unique, but nothing else of it.
func (s *server) createServiceToken(c caller, st serviceToken) (made madeServiceToken, err error) {
	if err := checkServiceToken(c, st); err != nil {
		return made, err
	}
	isClient := false
	_, isClient = s.cfg.clients[st.Name] // room: provider
	if isClient {
		return made, serviceNameTaken(st.Name)
	}
	st.ID = newID()
	secret := "pico_svc_" + hex.EncodeToString(randomBytes())
	err = s.store.changeBy(c.ctx, c.by, func(t *queries, actor user) error {
		if err := c.recheck(actor); err != nil {
			return err
		}
		if !mayGrant(actor, st.Role) || !mayReadOrg(actor, st.OrgID) {
			return forbidden("You may not create this service token")
		}
		known, err := t.serviceTokenNamed(st.Name)
		switch {
		case err == nil && mayReadOrg(actor, known.OrgID):
			made = madeServiceToken{ID: known.ID, Name: known.Name, AlreadyExists: true}
			return nil
		case err == nil:
			return serviceNameTaken(st.Name)
		case !errors.Is(err, errNotFound):
			return err
		}
		made = madeServiceToken{ID: st.ID, Name: st.Name, Token: secret}
		_, err = t.exec(`INSERT INTO service_tokens
			(id, name, token_hash, role, org_id, description, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			st.ID,
			st.Name,
			hashToken(secret),
			st.Role,
			st.OrgID,
			st.Description,
			s.now().Unix())
		return err
	})
	if err == nil && !made.AlreadyExists {
		c.event("service_token.created",
			"service_token", st.ID, "name", st.Name, "role", st.Role, "org", st.OrgID, "actor", c.by.id)
	}
	return made, err
}

// serviceNameTaken is for names that belong to a client or to another
// organisation.
func serviceNameTaken(name string) error {
	return refusal(409, "name_taken", "The name is taken: "+name)
}

// checkServiceToken checks what is stored of a new token. An organisation needs
// a name of today's form unless it is the caller's own.
func checkServiceToken(c caller, st serviceToken) error {
	if !serviceTokenName.MatchString(st.Name) {
		return invalidField("name", "must have 1 to 100 letters, digits, dots, underscores and hyphens")
	}
	if err := checkRole(st.Role); err != nil {
		return err
	}
	if st.OrgID != c.by.orgID {
		if err := checkOrg(st.OrgID); err != nil {
			return err
		}
	}
	return checkDescription(st.Description)
}

// handleCheckService tells a service whose secret somebody showed it.
// The secret is compared before the throttle is asked, so that nobody can have
// a right one refused.
func (s *server) handleCheckService(x *exchange, _ principal) error {
	var secret string
	if err := decode(x, need("token", &secret)); err != nil {
		return err
	}
	st, err := s.store.serviceTokenBySecret("", secret)
	if err == nil {
		return writeJSON(x, validServiceToken{true, st.Name, st.Role, st.OrgID})
	}
	if !errors.Is(err, errNotFound) {
		return err
	}
	if v := s.throttle.secretFailed(clientKey(x.clientIP())); v.rule != "" {
		x.event("service_token.throttled")
		return tooManyAttempts(v)
	}
	return writeJSON(x, map[string]bool{"valid": false})
}

// handleEndService removes the token that the path names.
func (s *server) handleEndService(x *exchange, p principal) error {
	name := x.r.PathValue("name")
	if err := s.revokeServiceToken(x.caller(p), name); err != nil {
		return err
	}
	return writeMessage(x, "Service token '"+name+"' revoked")
}

// revokeServiceToken ends a token at once. Those of superadmins are revoked by
// superadmins alone, as these are changed.
func (s *server) revokeServiceToken(c caller, name string) error {
	var st serviceToken
	err := s.store.changeBy(c.ctx, c.by, func(t *queries, actor user) (err error) {
		if err = c.recheck(actor); err != nil {
			return err
		}
		st, err = t.serviceTokenNamed(name)
		switch {
		case errors.Is(err, errNotFound) || (err == nil && !mayReadOrg(actor, st.OrgID)):
			return refusal(404, "service_token_not_found", "Active service token '"+name+"' not found")
		case err != nil:
			return err
		case !mayEditUser(actor, user{role: st.Role, orgID: st.OrgID}):
			return forbidden("You may not revoke this service token")
		}
		_, err = t.exec(`DELETE FROM service_tokens WHERE id = $1`, st.ID)
		return err
	})
	if err == nil {
		c.event("service_token.revoked", "service_token", st.ID, "name", st.Name, "actor", c.by.id)
	}
	return err
}

// --- in the shell ---

const serviceTokenUsage = `usage:
  pico-auth service-token add NAME [--role ROLE] [--org ORG] [--description TEXT] [--json]
  pico-auth service-token list [--org ORG] [--json]
  pico-auth service-token revoke NAME

The token is shown once, when it is added; its role is operator unless --role
says otherwise.`

func shellServiceTokenAdd(s *server, c shellCall) error {
	made, err := s.createServiceToken(c.caller, serviceToken{
		Name:        c.words[0],
		Description: c.description,
		Role:        cmp.Or(c.role, operator),
		OrgID:       cmp.Or(c.org, defaultOrg),
	})
	switch {
	case err != nil:
		return err
	case made.AlreadyExists:
		return errors.New("there is a service token of this name already; revoke it to make a new one")
	}
	c.print(made, made.Token)
	return nil
}

func shellServiceTokenList(s *server, c shellCall) error {
	c.print(nil, "NAME", "ROLE", "ORG", "CREATED", "DESCRIPTION")
	list := serviceTokensWhere(userFilter{everyOrg: c.org == "", orgID: c.org})
	return list.each(s.store.reads, func(st serviceToken) {
		c.print(st, st.Name, st.Role, st.OrgID, st.CreatedAt.String(), st.Description)
	})
}

func shellServiceTokenRevoke(s *server, c shellCall) error {
	return s.revokeServiceToken(c.caller, c.words[0])
}
