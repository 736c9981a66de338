// The questions that linux-mm had about zsmalloc in 2012, answered with figures.

import ArgumentParser
import Foundation
import HostMachine
import KernelMemory
import MemoryPrimitives

struct ZsmallocStudy: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "zsmalloc",
    abstract: "Layouts for compressed pages: density, metadata, and refusals on fragmented memory.",
    discussion: """
      Compares this project's store with Linux' chains, with the join of any two pages that was claimed for them, with \
      zbud and xvmalloc, which they replaced, and with blocks of two contiguous pages. The others are models, with \
      frames of a simulated machine. Objects have the sizes of the compressed pages of FILE, which may be compressed \
      by gzip or xz (- is standard input), and random ones.

      Examples:
        strata study zsmalloc
        strata study zsmalloc core.xz --seed 2
        strata study zsmalloc -j | jq -c '[.sizes, .layout, .filled]'

      Exit status: 0; 70 when an object is not as it was stored.
      """)

  @Argument(help: "The file with pages, at most 1 GiB of them.")
  var file = "Pages/anonymous-4096-pages.bin.xz"

  @Option(help: "How many objects have random sizes.")
  var objects = 16_384

  @Option(help: "Seed of the random sizes, and of the half that is freed.")
  var seed: UInt64 = 1

  @Flag(
    name: [.customShort("j"), .long], help: "Print a row of JSON for each layout and sizes instead of tables."
  )
  var json = false

  func validate() throws {
    if !(16...1_000_000).contains(objects) { throw ValidationError("--objects is 16 to 1000000") }
  }

  func run() throws {
    try complaining {
      Terminal.standard.beginProgress()
      let data = try DecompressedInput.contents(of: file, limit: PackedFile.limit)
      let all = try sizes(data)
      var results: [(SizeSample, [LayoutOutcome])] = []
      for sizes in all { results.append((sizes, try trials(sizes, at: results.count, of: all.count))) }
      Terminal.standard.clearProgress()
      let report = ZsmallocReport(results: results, seed: seed)
      try printResult(json ? report.rows : report.text)
    }
  }

  private func sizes(_ data: Data) throws -> [SizeSample] {
    let system = try HostSystem(toolMemory: .mebibytes(32))
    let title = "pages of \(file == "-" ? "standard input" : file)"
    let pages = try SizeSample.pages(of: data, on: system.memory, named: title)
    let random = [
      SizeSample.uniform(objects, seed: seed), .exponential(objects, seed: seed),
      .bimodal(objects, seed: seed),
    ]
    return (pages.sizes.isEmpty ? [] : [pages]) + random
  }

  private func trials(_ sizes: SizeSample, at index: Int, of count: Int) throws -> [LayoutOutcome] {
    let layouts = StudiedLayout.allCases
    // Four times the frames of the sparsest layout, which has one object a frame, and a quarter more.
    let frames = UInt64(sizes.sizes.count * 6)
    let system = try HostSystem(toolMemory: .mebibytes(32) + ByteCount(frames * Page.size))
    return try layouts.enumerated().map { position, layout in
      Terminal.standard.progress(
        "study", UInt64(index * layouts.count + position), of: UInt64(count * layouts.count), layout.title)
      return try LayoutTrial(layout: layout, sizes: sizes.sizes, seed: seed, memory: system.memory).run()
    }
  }
}
