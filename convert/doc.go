// Package convert turns checkpoints and GGUF files into GGUF files.
//
// It hides where weights lie and how they are stored: a checkpoint's shards,
// FP8 with block scales, experts as separate tensors, heads in another order.
// OpenCheckpoint and NewGGUFSource read headers, their Plan methods decide
// everything, and Run executes a plan:
//
//	ck, err := convert.OpenCheckpoint("DeepSeek-R1", convert.CheckpointOptions{})
//	plan, err := ck.Plan(convert.Request{Outputs: outputs})
//	err = convert.Run(ctx, plan, ck, convert.RunOptions{Inputs: ck.Inputs()})
//
// The same plan printed is the dry run (Plan.Summary), and NewView presents it
// as a gguf.Model whose rows are computed when asked for, with nothing written.
//
// Output depends on input and request alone, never on threads, memory, or what
// else is made in the same run. A file gets its name when it is complete.
package convert
