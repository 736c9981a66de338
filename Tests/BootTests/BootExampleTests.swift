import XCTest

/// Each example of `help` works on the machine that `make run` boots: 256 MiB, a RAM disk for swap of 64 MiB, the sample
/// trace.
final class BootExampleTests: XCTestCase {
  private func machine() -> Boot {
    var boot = Boot()
    boot.memory = "320M"
    boot.module = Boot.sample
    boot.line = "swap.ramdisk=67108864"
    return boot
  }

  func testEachExampleOfHelpWorks() throws {
    let commands = try machine().run("help -j").rows("command")
    XCTAssertGreaterThan(commands.count, 30)
    var lines: [String] = []
    for command in commands {
      let name = try XCTUnwrap(command["command"] as? String)
      let example = try XCTUnwrap(command["example"] as? String)
      // These three end the machine.
      if ["fault", "panic", "poweroff"].contains(name) { continue }
      if let after = command["after"] as? String { lines.append(after) }
      lines.append(example)
      if example.hasPrefix("unwire") || example.hasPrefix("dirty") { lines.append("dirty free") }
      if example.hasPrefix("contig") { lines.append("contig free all") }
    }
    // A wire that is not undone keeps the pages from being freed: the first of the two wires is undone here.
    let wire = try XCTUnwrap(lines.firstIndex { $0.hasPrefix("wire ") })
    lines.insert("un" + lines[wire], at: wire + 1)
    let log = try machine().run(lines.joined(separator: "; "))
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    for line in lines { XCTAssertTrue(log.text.contains("strata> \(line)"), "\(line) did not run") }
  }

  func testTheExamplesThatEndTheMachineDo() throws {
    XCTAssertEqual(try machine().run("fault double-free").status, Boot.Status.stopped)
    XCTAssertEqual(try machine().run("poweroff").status, Boot.Status.success)
    XCTAssertEqual(try machine().run("panic").status, Boot.Status.stopped)
  }

  /// Each frame of a running kernel that is not free has an owner, with several processors, swap and a kept replay.
  func testEveryFrameOfARunningKernelHasAnOwner() throws {
    var boot = machine()
    boot.processors = 2
    let log = try boot.run("dirty 4M; contig 2M align=2M; replay keep; whatis 0+320M -j")
    let rows = log.rows("owned_frames")
    var roles: Set<String> = []
    for row in rows {
      let role = try XCTUnwrap(row["role"] as? String)
      roles.insert(role)
      if role != "free" && role != "no memory" { XCTAssertTrue(row["owner"] is String, "\(row)") }
    }
    XCTAssertTrue(
      roles.isSuperset(of: ["wired", "stack", "boot", "image", "pageable", "contiguous"]), "\(roles)")
  }

  /// A processor that has been idle since it came up shows the time that it still is.
  func testAnIdleProcessorShowsItsIdleTime() throws {
    var boot = machine()
    boot.processors = 2
    let rows = try boot.run("cpus -j").rows("cpu")
    XCTAssertEqual(rows.count, 2)
    XCTAssertGreaterThan(rows.last?["idle_cost"] as? Int ?? 0, 0)
  }

  /// Budgets in instructions are compared with instructions only.
  func testABudgetStandsBesideInstructionsOnly() throws {
    let cycles = try machine().run("locks; sysctl machine.cycles").text
    XCTAssertTrue(cycles.contains("are in cycles") && !cycles.contains("The budget for a spin lock"), cycles)
    var counting = machine()
    counting.countsInstructions = true
    let text = try counting.run("locks; sysctl machine.cycles").text
    XCTAssertTrue(text.contains("The budget for a spin lock: 20,000 instructions."), text)
  }
}
