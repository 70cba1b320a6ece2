package main

// The supervisor: starts a control plane, restarts parts of it when asked, and
// takes all of it down when whoever started it goes away, however that happens.
//
// `up` re-executes itself as `supervise` in a PID namespace of its own, whose
// init the supervisor then is: when it ends, the kernel ends everything in it.
// The supervisor ends when its standard input reaches end of file, which the
// death of the process that holds the other end of the pipe brings about.
//
// It speaks lines. Out: `ready {json}`, `ok COMMAND`, `failed COMMAND: why`.
// In: `stop COMPONENT`, `kill COMPONENT`, `start COMPONENT`.

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const startTimeout = 60 * time.Second

// up runs `supervise` as init of a new PID namespace and waits for it.
func up(args []string) int {
	// Pdeathsig follows the thread that forked: keep that thread.
	runtime.LockOSThread()
	command := exec.Command("/proc/self/exe", append([]string{"supervise"}, args...)...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
		// A Ctrl-C in the terminal is the business of the process that started us.
		Setpgid: true,
	}
	if os.Geteuid() != 0 {
		command.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	err := command.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster: cannot start the supervisor:", err)
		return 1
	}
	return 0
}

// component is one process of the control plane and how to (re)start it.
type component struct {
	name   string
	args   []string
	health string // URL that answers 200 once it serves
	log    string
	stop   syscall.Signal // ends it in order

	command *exec.Cmd
	done    chan struct{}
}

type controlPlane struct {
	dir        string
	components []*component
}

func supervise(args []string) int {
	flags := flag.NewFlagSet("cluster up", flag.ExitOnError)
	var options options
	flags.StringVar(&options.dir, "dir", "", "an empty directory for data, logs and credentials")
	flags.BoolVar(&options.audit, "audit", false, "record every request in DIR/audit.log")
	flags.StringVar(&options.assets, "assets", "", "directory with etcd, kube-apiserver, … to run instead of the built-in ones")
	flags.StringVar(&options.listen, "listen", "", "ADDRESS:PORT of this machine at which pods find the API server (else a free port of 127.0.0.1)")
	flags.Parse(args)
	if options.dir == "" {
		fmt.Fprintln(os.Stderr, "cluster: --dir is missing")
		return 2
	}
	runtime.LockOSThread()

	plane, description, err := prepare(options)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	commands := make(chan string)
	go readCommands(commands)
	started := make(chan error, 1)
	go func() { started <- plane.start() }()
	for {
		select {
		case err := <-started:
			if err != nil {
				fmt.Fprintln(os.Stderr, "cluster:", err)
				plane.shutDown()
				return 1
			}
			line, _ := json.Marshal(description)
			fmt.Printf("ready %s\n", line)
		case line, open := <-commands:
			if !open {
				plane.shutDown()
				return 0
			}
			if err := plane.obey(line); err != nil {
				fmt.Printf("failed %s: %s\n", line, strings.ReplaceAll(err.Error(), "\n", " | "))
			} else {
				fmt.Printf("ok %s\n", line)
			}
		}
	}
}

func readCommands(commands chan<- string) {
	defer close(commands)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		commands <- lines.Text()
	}
}

func (p *controlPlane) obey(line string) error {
	verb, name, _ := strings.Cut(line, " ")
	for _, c := range p.components {
		if c.name != name {
			continue
		}
		switch verb {
		case "start":
			if err := c.spawn(); err != nil {
				return err
			}
			return c.awaitHealthy()
		case "stop":
			c.end(c.stop)
			return nil
		case "kill":
			c.end(syscall.SIGKILL)
			return nil
		}
	}
	return errors.New("no such command or component")
}

// start brings up etcd, the API server, then the rest, each once the one it needs answers.
func (p *controlPlane) start() error {
	for _, c := range p.components {
		if err := c.spawn(); err != nil {
			return err
		}
		if c.name == "etcd" {
			continue // the API server waits for it
		}
		if err := c.awaitHealthy(); err != nil {
			return err
		}
	}
	return nil
}

// shutDown stops the API server before etcd, or it hangs in its graceful shutdown.
func (p *controlPlane) shutDown() {
	for i := len(p.components) - 1; i >= 0; i-- {
		p.components[i].end(syscall.SIGKILL)
	}
}

func (c *component) spawn() error {
	log, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	c.command = exec.Command(c.args[0], c.args[1:]...)
	c.command.Stdout, c.command.Stderr = log, log
	c.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.command.Start(); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	c.done = make(chan struct{})
	go func(command *exec.Cmd, done chan struct{}) {
		command.Wait()
		close(done)
	}(c.command, c.done)
	return nil
}

func (c *component) end(signal syscall.Signal) {
	if c.command == nil {
		return
	}
	c.command.Process.Signal(signal)
	select {
	case <-c.done:
	case <-time.After(20 * time.Second):
		c.command.Process.Kill()
		<-c.done
	}
}

// awaitHealthy polls the health URL; a component that ends or stays silent is an
// error that carries the last lines of its log.
func (c *component) awaitHealthy() error {
	client := &http.Client{
		Timeout:   2 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
	}
	deadline := time.After(startTimeout)
	for {
		if response, err := client.Get(c.health); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-c.done:
			return fmt.Errorf("%s ended while starting; the end of %s:\n%s", c.name, c.log, tail(c.log))
		case <-deadline:
			return fmt.Errorf("%s did not become healthy in %s; the end of %s:\n%s", c.name, startTimeout, c.log, tail(c.log))
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func tail(path string) string {
	text, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}

// executable is the command line that runs the named component.
func executable(assets, name string) []string {
	if assets != "" {
		if path := filepath.Join(assets, name); exec.Command("test", "-x", path).Run() == nil {
			return []string{path}
		}
	}
	self, err := os.Executable()
	if err != nil {
		self = "/proc/self/exe"
	}
	return []string{self, name}
}
