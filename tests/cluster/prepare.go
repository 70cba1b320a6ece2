package main

// What a control plane needs before its first process: ports of its own, keys,
// tokens, kubeconfig files, and the command line of each component.

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
)

// description is what the process that asked for the cluster is told.
type description struct {
	Server     string `json:"server"`
	Kubeconfig string `json:"kubeconfig"`
	CA         string `json:"ca"`
	Token      string `json:"token"`
	AuditLog   string `json:"auditLog,omitempty"`
}

// auditPolicy records who asked for what, without bodies.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

// options is what the command line of `up` says.
type options struct {
	dir    string
	assets string
	audit  bool
	// listen is the address and port at which pods find the API server, which then
	// listens at that port of every address; without it, at a free port of the loopback.
	listen string
}

func prepare(options options) (*controlPlane, *description, error) {
	dir := options.dir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	ports, err := claimPorts(5)
	if err != nil {
		return nil, nil, err
	}
	etcdPort, peerPort, apiPort, kcmPort, schedulerPort := ports[0], ports[1], ports[2], ports[3], ports[4]
	server, bind := fmt.Sprintf("127.0.0.1:%d", apiPort), "127.0.0.1"
	if options.listen != "" {
		address, err := netip.ParseAddrPort(options.listen)
		if err != nil {
			return nil, nil, fmt.Errorf("--listen: %w", err)
		}
		server, bind, apiPort = address.String(), "0.0.0.0", int(address.Port())
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	token := randomToken()
	out := &description{
		Server:     "https://" + server,
		Kubeconfig: in("admin.kubeconfig"),
		CA:         in("apiserver.crt"),
		Token:      token,
	}
	files := map[string]string{
		"tokens.csv":        token + ",admin,admin,system:masters\n",
		"admin.kubeconfig":  kubeconfig(out.Server, out.CA, token),
		"audit-policy.yaml": auditPolicy,
	}
	for name, text := range files {
		if err := os.WriteFile(in(name), []byte(text), 0o600); err != nil {
			return nil, nil, err
		}
	}
	if err := writeKeyPair(in("sa.key"), in("sa.pub")); err != nil {
		return nil, nil, err
	}

	etcdURL := fmt.Sprintf("http://127.0.0.1:%d", etcdPort)
	peerURL := fmt.Sprintf("http://127.0.0.1:%d", peerPort)
	apiserverArgs := []string{
		"--etcd-servers", etcdURL, "--cert-dir", dir, "--secure-port", fmt.Sprint(apiPort), "--bind-address", bind,
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", in("sa.pub"),
		"--service-account-signing-key-file", in("sa.key"), "--token-auth-file", in("tokens.csv"),
		"--authorization-mode", "Node,RBAC", "--service-cluster-ip-range", "10.96.0.0/16", "--allow-privileged=true",
		"--endpoint-reconciler-type", "none", "--kubelet-preferred-address-types", "InternalIP",
	}
	if options.listen != "" {
		host, _, _ := net.SplitHostPort(server)
		apiserverArgs = append(apiserverArgs, "--advertise-address", host)
	}
	if options.audit {
		out.AuditLog = in("audit.log")
		apiserverArgs = append(apiserverArgs, "--audit-policy-file", in("audit-policy.yaml"), "--audit-log-path", out.AuditLog)
	}
	clients := []string{
		"--kubeconfig", out.Kubeconfig, "--authentication-kubeconfig", out.Kubeconfig, "--authorization-kubeconfig", out.Kubeconfig,
		"--leader-elect=false", "--bind-address", "127.0.0.1", "--kube-api-qps", "2000", "--kube-api-burst", "4000", "--cert-dir", dir,
	}
	plane := &controlPlane{dir: dir}
	add := func(name, health string, stop syscall.Signal, args ...string) {
		plane.components = append(plane.components, &component{
			name: name, health: health, stop: stop, log: in(name + ".log"), args: append(executable(options.assets, name), args...),
		})
	}
	add("etcd", etcdURL+"/health", syscall.SIGTERM, "--data-dir", in("etcd"), "--listen-client-urls", etcdURL,
		"--advertise-client-urls", etcdURL, "--listen-peer-urls", peerURL, "--initial-advertise-peer-urls", peerURL,
		"--initial-cluster", "default="+peerURL, "--unsafe-no-fsync", "--log-level", "warn")
	add("kube-apiserver", out.Server+"/readyz", syscall.SIGTERM, apiserverArgs...)
	add("kube-controller-manager", fmt.Sprintf("https://127.0.0.1:%d/healthz", kcmPort), syscall.SIGTERM, append([]string{
		"--secure-port", fmt.Sprint(kcmPort), "--service-account-private-key-file", in("sa.key"), "--root-ca-file", out.CA}, clients...)...)
	add("kube-scheduler", fmt.Sprintf("https://127.0.0.1:%d/healthz", schedulerPort), syscall.SIGTERM, append([]string{
		"--secure-port", fmt.Sprint(schedulerPort)}, clients...)...)
	return plane, out, nil
}

// claimPorts finds free loopback ports outside the ephemeral range and keeps each
// for this process by a lock, so that clusters that start side by side never
// choose the same one. The locks end with the process.
func claimPorts(count int) ([]int, error) {
	locks := filepath.Join(os.TempDir(), fmt.Sprintf("mooring-cluster-ports-%d", os.Getuid()))
	if err := os.MkdirAll(locks, 0o700); err != nil {
		return nil, err
	}
	var ports []int
	for port := 21000; port < 32000 && len(ports) < count; port++ {
		fd, err := syscall.Open(filepath.Join(locks, fmt.Sprint(port)), syscall.O_CREAT|syscall.O_RDWR|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			continue
		}
		if syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			syscall.Close(fd)
			continue
		}
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			syscall.Close(fd)
			continue
		}
		listener.Close()
		ports = append(ports, port) // fd stays open, and with it the lock
	}
	if len(ports) < count {
		return nil, fmt.Errorf("no %d free ports between 21000 and 32000 on 127.0.0.1", count)
	}
	return ports, nil
}

func randomToken() string {
	var bytes [16]byte
	rand.Read(bytes[:])
	return hex.EncodeToString(bytes[:])
}

func kubeconfig(server, ca, token string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: admin, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
`, server, ca, token)
}

// writeKeyPair makes the key that signs service account tokens.
func writeKeyPair(private, public string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	encoded, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(private, secret, 0o600); err != nil {
		return err
	}
	return os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: encoded}), 0o644)
}
