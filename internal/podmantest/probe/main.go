// Command probe is what the test images run. It is linked statically and needs
// nothing of an image.
//
//	probe serve TEXT      answer every HTTP request on port 80 with TEXT
//	probe sleep           until SIGTERM
//	probe stubborn        for ever; SIGTERM is ignored
//	probe exit CODE       at once
//	probe env NAME        serve the value of an environment variable
//	probe file PATH       serve what is in a file
//	probe id              serve uid and gid
//	probe exists PATH     end at once, with code 1 if there is no such file
//	probe touch PATH      make a file
//
// PORT, if set, is served instead of 80.
package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	args := append(os.Args[1:], "sleep", "")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	fmt.Println("probe", args[0])
	switch args[0] {
	case "serve":
		go serve(args[1])
	case "env":
		go serve(os.Getenv(args[1]))
	case "file":
		data, err := os.ReadFile(args[1])
		if err != nil {
			data = []byte(err.Error())
		}
		go serve(string(data))
	case "id":
		go serve(fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()))
	case "exit":
		code, _ := strconv.Atoi(args[1])
		os.Exit(code)
	case "exists":
		if _, err := os.Stat(args[1]); err != nil {
			os.Exit(1)
		}
		return
	case "touch":
		if err := os.WriteFile(args[1], nil, 0o600); err != nil {
			os.Exit(1)
		}
		return
	case "stubborn":
		for range stop {
		}
	}
	<-stop
}

// serve speaks just enough HTTP: net/http would make the image three times as
// large.
func serve(text string) {
	port := os.Getenv("PORT")
	if port == "" {
		port = "80"
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if _, err := c.Read(make([]byte, 4096)); err == nil {
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
			}
		}()
	}
}
