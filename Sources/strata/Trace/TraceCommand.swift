// `strata trace`: making packed traces.

import ArgumentParser
import Foundation
import Workloads

struct Trace: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Make packed traces of a kernel's allocations, and show them.",
    subcommands: [Pack.self, TraceShow.self])

  struct Pack: ParsableCommand {
    static let configuration = CommandConfiguration(
      abstract: "Pack a recorder's text into a trace that a kernel can replay.",
      discussion: """
        TEXT is what cat /sys/kernel/tracing/trace, trace-cmd report or perf script prints with the events of \
        group kmem on, of Linux 3.0 to 6: plain, or compressed by gzip or xz; - is standard input. Kept are \
        kmalloc, kfree, kmem_cache_alloc, kmem_cache_free, mm_page_alloc, mm_page_free and \
        mm_page_free_batched, by the names of any of these versions. Latency format and a dump in the kernel's \
        log are read too. All else is counted in the summary, which goes to standard error: a malformed line is dropped, \
        and the first of each kind is named with its number. Only a text without any event is refused.

        To record (as root, on the machine to be studied), one of:
          cd /sys/kernel/tracing
          echo 40000 > buffer_size_kb; echo 1 > events/kmem/enable
          make -C ~/project; echo 0 > tracing_on; cat trace > ~/build.ftrace

          trace-cmd record -e kmem make; trace-cmd report > build.ftrace
          perf record -a -e 'kmem:*' make; perf script > build.ftrace

        Examples:
          strata trace pack build.ftrace.xz -o build.trace
          ssh box cat /sys/kernel/tracing/trace | strata trace pack - -o box.trace
          strata trace pack build.ftrace -o - | strata replay -
          strata trace pack build.ftrace -o start.trace --events 100000

        Replay it on this host with `strata replay build.trace`, in the kernel with \
        `make run TRACE=build.trace`.
        """)

    @Argument(help: ArgumentHelp("The text to pack; - for standard input.", valueName: "text"))
    var ftrace: String

    @Option(name: .shortAndLong, help: "The packed trace to write; - for standard output.")
    var output: String

    @Option(help: "Keep this many events, from the first on.")
    var events: Int?

    @Option(help: "The name in the trace (default: that of the text's file).")
    var title: String?

    @Flag(name: [.customShort("j"), .long], help: "Print the summary as rows of JSON.")
    var json = false

    func validate() throws {
      if let events, events < 1 { throw ValidationError("--events is at least 1.") }
    }

    func run() throws {
      try complaining {
        let input = try TextInput(ftrace)
        try checkOutput()
        var packer = TracePacker(limit: events ?? .max)
        Terminal.standard.beginProgress()
        try input.forEachLine { line, hasLineFeed in
          try packer.take(line, of: input.name, hasLineFeed: hasLineFeed)
          if packer.lines % 4096 == 0 {
            Terminal.standard.progress(
              "pack", input.bytesRead, of: input.size, "\(grouped(packer.lines)) lines")
          }
        }
        Terminal.standard.clearProgress()
        guard packer.eventsByKind.contains(where: { $0 > 0 }) else { throw nothing(in: packer, input.name) }
        let packed = try packer.pack(title: title ?? Self.title(of: ftrace))
        try write(packed, to: output)
        let place = output == "-" ? "standard output" : output
        let summary = PackSummary(packer, packed, from: input.name, to: place)
        printToStandardError(json ? summary.json + "\n" : summary.text)
      }
    }

    /// Refuses to write over the recording, or bytes to a terminal.
    private func checkOutput() throws {
      if output != "-" && isSameFile(ftrace, output) {
        throw Complaint("\(output): is the recording itself, which would be lost", .cannotCreate)
      }
      if output.isEmpty { throw Complaint("the name of the packed trace is empty", .usage) }
      // A long recording is not read for an output that can't be written.
      var status = stat()
      let isThere = output == "-" || stat(output, &status) == 0
      if isThere && output != "-" && status.st_mode & S_IFMT == S_IFDIR {
        throw Complaint("\(output): is a directory", .cannotCreate)
      }
      let folder = URL(fileURLWithPath: output).deletingLastPathComponent().path
      if !isThere && access(folder, W_OK) != 0 { throw Complaint.system(output, .cannotCreate) }
      if output == "-" && isatty(STDOUT_FILENO) == 1 {
        throw Complaint("standard output is a terminal: send the packed trace to a file or a pipe", .usage)
      }
    }

    private func nothing(in packer: TracePacker, _ name: String) -> Complaint {
      if packer.lines == 0 { return Complaint("\(name): is empty", .dataError) }
      let others = PackSummary.sorted(packer.dropped.others).prefix(3).map(\.key)
      var instead = ""
      if !others.isEmpty {
        instead = ", only \(others.joined(separator: ", ")): record the events of group kmem"
      } else if let (reason, found) = packer.dropped.malformed.min(by: { $0.value.first < $1.value.first }) {
        instead = "; line \(grouped(found.first)) is \(reason.rawValue): \(found.text)"
      }
      return Complaint(
        "\(name): no allocation event in \(counted(packer.lines, "line"))\(instead)", .dataError)
    }

    /// The name without folders and endings: `linux-6.1-build` of `traces/linux-6.1-build.ftrace.xz`.
    static func title(of path: String) -> String {
      var name = Substring(path == "-" ? "" : URL(fileURLWithPath: path).lastPathComponent)
      for ending in [".xz", ".gz", ".txt", ".ftrace"] where name.hasSuffix(ending) {
        name = name.dropLast(ending.count)
      }
      return String(name)
    }
  }
}
