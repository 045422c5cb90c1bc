// Asks by a library of Go: client LIBRARY WAY…, where a way is plain, stream, tools or upload. Prints a line for each.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/shared"
	"google.golang.org/genai"
)

const question, weather = "Hi", "What is the weather in Paris?"

type ways map[string]func() (string, error)

func main() {
	libraries := map[string]func(context.Context) ways{
		"google.golang.org/genai":                google,
		"github.com/openai/openai-go":            openAI,
		"github.com/anthropics/anthropic-sdk-go": claude,
	}
	made := libraries[os.Args[1]](context.Background())
	for _, way := range os.Args[2:] {
		if text, err := made[way](); err != nil {
			fmt.Println(way+": failed:", strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Println(way+":", text)
		}
	}
}

func google(ctx context.Context) ways {
	client, err := genai.NewClient(ctx, nil)
	if err != nil {
		panic(err)
	}
	model := "gemini-3.8-flash"
	declared := []*genai.FunctionDeclaration{{Name: "weather", Description: "w"}}
	tools := &genai.GenerateContentConfig{Tools: []*genai.Tool{{FunctionDeclarations: declared}}}
	return ways{
		"plain": func() (string, error) {
			reply, err := client.Models.GenerateContent(ctx, model, genai.Text(question), nil)
			if err != nil {
				return "", err
			}
			return reply.Text(), nil
		},
		"stream": func() (string, error) {
			text := ""
			for chunk, err := range client.Models.GenerateContentStream(ctx, model, genai.Text(question), nil) {
				if err != nil {
					return "", err
				}
				text += chunk.Text()
			}
			return text, nil
		},
		"tools": func() (string, error) {
			reply, err := client.Models.GenerateContent(ctx, model, genai.Text(weather), tools)
			if err != nil {
				return "", err
			}
			return reply.FunctionCalls()[0].Name, nil
		},
		"upload": func() (string, error) {
			config := &genai.UploadFileConfig{MIMEType: "text/plain"}
			file, err := client.Files.Upload(ctx, strings.NewReader("hello"), config)
			if err != nil {
				return "", err
			}
			file, err = client.Files.Get(ctx, file.Name, nil)
			if err != nil {
				return "", err
			}
			return file.Name, nil
		},
		"live": func() (string, error) {
			_, err := client.Live.Connect(ctx, "gemini-live-2.5-flash-preview", nil)
			return "opened", err
		},
	}
}

func openAI(ctx context.Context) ways {
	client := openai.NewClient()
	asked := func(text string) openai.ChatCompletionNewParams {
		messages := []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)}
		return openai.ChatCompletionNewParams{Model: "gpt-5", Messages: messages}
	}
	return ways{
		"plain": func() (string, error) {
			reply, err := client.Chat.Completions.New(ctx, asked(question))
			if err != nil {
				return "", err
			}
			return reply.Choices[0].Message.Content, nil
		},
		"stream": func() (string, error) {
			text, stream := "", client.Chat.Completions.NewStreaming(ctx, asked(question))
			for stream.Next() {
				if choices := stream.Current().Choices; len(choices) > 0 {
					text += choices[0].Delta.Content
				}
			}
			return text, stream.Err()
		},
		"tools": func() (string, error) {
			params, function := asked(weather), shared.FunctionDefinitionParam{Name: "weather"}
			params.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(function)}
			reply, err := client.Chat.Completions.New(ctx, params)
			if err != nil {
				return "", err
			}
			return reply.Choices[0].Message.ToolCalls[0].Function.Name, nil
		},
		"upload": func() (string, error) {
			content := openai.File(strings.NewReader("hello"), "hello.txt", "text/plain")
			params := openai.FileNewParams{File: content, Purpose: openai.FilePurposeUserData}
			file, err := client.Files.New(ctx, params)
			if err != nil {
				return "", err
			}
			file, err = client.Files.Get(ctx, file.ID)
			if err != nil {
				return "", err
			}
			return file.ID, nil
		},
	}
}

func claude(ctx context.Context) ways {
	client := anthropic.NewClient()
	asked := func(text string) anthropic.MessageNewParams {
		messages := []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(text))}
		return anthropic.MessageNewParams{Model: "claude-sonnet-5", MaxTokens: 99, Messages: messages}
	}
	return ways{
		"plain": func() (string, error) {
			reply, err := client.Messages.New(ctx, asked(question))
			if err != nil {
				return "", err
			}
			return reply.Content[0].Text, nil
		},
		"stream": func() (string, error) {
			text, stream := "", client.Messages.NewStreaming(ctx, asked(question))
			for stream.Next() {
				text += stream.Current().Delta.Text
			}
			return text, stream.Err()
		},
		"tools": func() (string, error) {
			params := asked(weather)
			tool := anthropic.ToolParam{Name: "weather", InputSchema: anthropic.ToolInputSchemaParam{}}
			params.Tools = []anthropic.ToolUnionParam{{OfTool: &tool}}
			reply, err := client.Messages.New(ctx, params)
			if err != nil {
				return "", err
			}
			return reply.Content[0].Name, nil
		},
		"upload": func() (string, error) {
			content := anthropic.File(strings.NewReader("hello"), "hello.txt", "text/plain")
			file, err := client.Beta.Files.Upload(ctx, anthropic.BetaFileUploadParams{File: content})
			if err != nil {
				return "", err
			}
			return file.ID, nil
		},
	}
}
