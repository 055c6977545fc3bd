package main

// This file decides who may do what. It is pure: no clock, no database, no request. Its
// callers hand in principals and users read from the database, never from a token or a
// request body. Everything not granted here is denied; a role this file does not know
// (adopted databases may hold one) can do nothing but manage its own account.

import "slices"

// role is the position of a user. Roles are stored as these texts.
type role = string

const (
	superadmin role = "superadmin" // everything, in every organisation
	orgAdmin   role = "org_admin"  // the users of its own organisation
	operator   role = "operator"   // its own account
	viewer     role = "viewer"     // its own account; what registration gives
)

// Statuses of a user. Only active users hold sessions.
const (
	statusActive    = "active"
	statusSuspended = "suspended"
)

// defaultOrg is the organisation of everybody who registers.
const defaultOrg = "default"

// permission is what a route demands of its caller.
type permission int

const (
	denied        permission = iota // the zero value: a route that names no permission is open to nobody
	public                          // no token is looked at, not even a wrong one
	permSelf                        // the caller's own account and sessions; says nothing about other users
	permUsersRead                   // see users; which ones is mayReadUser's decision
	permUsersEdit                   // change users; which ones and to what is mayEditUser's and mayGrant's decision
	permOrgEdit                     // move users between organisations; implies nothing within them
	permSettings                    // change how the whole server behaves, such as open registration
)

// roles is the policy: what each role may ask for. Object rules follow below.
var roles = map[role][]permission{
	superadmin: {permUsersRead, permUsersEdit, permOrgEdit, permSettings},
	orgAdmin:   {permUsersRead, permUsersEdit},
	operator:   {},
	viewer:     {},
}

// principal is an authenticated caller, as the database knew it when the request came in.
type principal struct {
	user
	sessionID string
}

// allows tells whether a role holds a permission.
func allows(r role, need permission) bool {
	return need == permSelf || slices.Contains(roles[r], need) // whoever could log in may manage that account, with an unknown role too
}

func knownRole(r role) bool {
	_, ok := roles[r]
	return ok
}

// mayReadUser tells whether target exists as far as the actor can know. Users of another
// organisation do not: telling "forbidden" from "not found" would reveal them.
func mayReadUser(actor, target user) bool {
	return allows(actor.role, permUsersRead) && (actor.role == superadmin || actor.orgID == target.orgID)
}

// mayEditUser tells whether the actor may change a user it can see. Superadmins are changed by
// superadmins alone, otherwise an org_admin could take one over by resetting its password.
func mayEditUser(actor, target user) bool {
	return mayReadUser(actor, target) && allows(actor.role, permUsersEdit) &&
		(actor.role == superadmin || target.role != superadmin)
}

// mayGrant tells whether the actor may give someone a role: never one above its own.
func mayGrant(actor user, r role) bool {
	return knownRole(r) && (actor.role == superadmin || (actor.role == orgAdmin && r != superadmin))
}
