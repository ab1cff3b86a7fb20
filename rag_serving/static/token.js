// The bearer token of this tab: in sessionStorage, never in an address.

const KEY = "research-server-token";

export const keepToken = (token) => sessionStorage.setItem(KEY, token);

export function authorization() {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}
