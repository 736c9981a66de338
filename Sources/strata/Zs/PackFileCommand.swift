// `strata zs`: any file, packed page by page into a compressed store.

import ArgumentParser
import Foundation
import MemoryPrimitives

struct PackFileCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "zs",
    abstract: "Pack any file into a compressed store of pages, and print what the store held.",
    discussion: """
      Each 4096 bytes of the file are a page; the last one is filled up with zeroes. A simulated machine stores them \
      as a kernel stores pages that it swaps to memory. Then a random half is freed. After each step, each page is \
      loaded again and compared. FILE may be compressed by gzip or xz; - is standard input.

      Density is bytes of objects for each byte of frames, with those of tables; ratio is bytes of pages for each \
      byte of frames.

      Examples:
        strata zs Pages/anonymous-4096-pages.bin.xz
        strata zs /bin/bash -j | jq .density

      Exit status: 0; 70 when a page is not as it was.
      """)

  @Argument(help: "A file of any bytes, at most 1 GiB of them; - is standard input.")
  var file: String

  @Option(help: "Seed of the half that is freed.")
  var seed: UInt64 = 1

  @Flag(name: [.customShort("j"), .long], help: "Print a row of JSON a step instead of a table.")
  var json = false

  func run() throws {
    try complaining {
      Terminal.standard.beginProgress()
      let packed = try PackedFile(DecompressedInput.contents(of: file, limit: PackedFile.limit))
      var steps: [PackedFileStep] = []
      try packed.pack()
      steps.append(try packed.step("stored"))
      packed.compact()
      steps.append(try packed.step("compacted"))
      packed.freeHalf(seed: seed)
      steps.append(try packed.step("halved"))
      packed.compact()
      steps.append(try packed.step("halved_compacted"))
      try packed.finish()
      Terminal.standard.clearProgress()
      if json {
        try printResult(steps.map { row($0, packed) }.joined(separator: "\n"))
      } else {
        try printResult(table(steps, packed))
      }
    }
  }

  private var source: String { file == "-" ? "standard input" : file }

  private func row(_ step: PackedFileStep, _ packed: PackedFile) -> String {
    var row = JSONRow("zs_file")
    row.add("source", source)
    row.add("step", step.name)
    row.add("seed", seed)
    row.add("padding_bytes", UInt64(packed.padding))
    row.add("pages", step.pages)
    row.add("same_filled", step.sameFilled)
    row.add("incompressible", step.incompressible)
    row.add("objects", step.objects)
    row.add("bytes", step.bytes)
    row.add("data_frames", step.dataFrames)
    row.add("table_frames", step.tableFrames)
    row.add("density", step.density, decimals: 4)
    row.add("ratio", step.ratio, decimals: 3)
    return row.text
  }

  private func table(_ steps: [PackedFileStep], _ packed: PackedFile) -> String {
    let all = steps[0]
    var lines = [
      "\(source): \(counted(all.pages, "page"))",
      "  \(grouped(all.compressed)) compressed, \(grouped(all.sameFilled)) one repeated word, "
        + "\(grouped(all.incompressible)) incompressible",
      "step                        pages        bytes  frames  of tables  density  ratio",
    ]
    let titles = ["stored", "compacted", "a random half freed", "and compacted"]
    for (title, step) in zip(titles, steps) {
      let cells = [
        title.left(22), grouped(step.pages).right(11), grouped(step.bytes).right(13),
        grouped(step.frames).right(8), grouped(step.tableFrames).right(11),
        Self.decimal(step.density, 3).right(9), Self.decimal(step.ratio, 2).right(7),
      ]
      lines.append(cells.joined())
    }
    if packed.padding > 0 {
      lines.append(
        "The last page was \(counted(UInt64(packed.padding), "byte")) short, and filled up with zeroes.")
    }
    lines.append("Each page was loaded again after each step, and is as it was. Seed \(seed).")
    return lines.joined(separator: "\n")
  }

  private static func decimal(_ value: Double, _ decimals: Int) -> String {
    value.isFinite ? String(format: "%.\(decimals)f", value) : "-"
  }
}
