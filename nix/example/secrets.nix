# Read by the agenix command: which keys each secret is encrypted to. Run `agenix` in this folder.
let
  # Yours, to edit the secret: cat ~/.ssh/id_ed25519.pub
  admin = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG2NBUii3dLEDNZPKQfyrh3gs5lSB9b0UmxNcl2rhjck admin@example";
  # The machine's, to decrypt it at boot: ssh-keyscan -t ed25519 HOST
  host = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICkjeqh+8s/vPmBY3U8gGWSXKdI/j8m34RXZJD+Eo0/C root@example";
in
{
  "tailscale-token.age".publicKeys = [
    admin
    host
  ];
}
