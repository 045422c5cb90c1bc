// Asks the door by Google's SDK for Go: whole, streams, an upload. Prints a line for each.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"google.golang.org/genai"
)

func main() {
	ctx := context.Background()
	calls, _ := strconv.Atoi(os.Args[2])
	client, err := genai.NewClient(ctx, &genai.ClientConfig{
		APIKey:      "keyrot-pool",
		Backend:     genai.BackendGeminiAPI,
		HTTPOptions: genai.HTTPOptions{BaseURL: os.Args[1] + "/gemini"},
	})
	if err != nil {
		panic(err)
	}
	for n := 0; n < calls; n++ {
		if n%2 == 0 {
			reply, err := client.Models.GenerateContent(ctx, "gemini-3.8-flash", genai.Text("Hi"), nil)
			say("whole", func() string { return reply.Text() }, err)
			continue
		}
		text := ""
		var failed error
		for chunk, err := range client.Models.GenerateContentStream(ctx, "gemini-3.8-flash", genai.Text("Hi"), nil) {
			if failed = err; err != nil {
				break
			}
			text += chunk.Text()
		}
		say("stream", func() string { return text }, failed)
	}
	file, err := client.Files.Upload(ctx, strings.NewReader("hello"), &genai.UploadFileConfig{MIMEType: "text/plain"})
	say("upload", func() string { return file.Name }, err)
}

func say(name string, text func() string, err error) {
	if err != nil {
		fmt.Println(name+": failed:", err)
		return
	}
	fmt.Println(name+":", text())
}
