import XCTest

/// `swap.ramdisk=SIZE`: the top of memory is cut off before Strata takes the rest.
final class BootRamDiskTests: XCTestCase {
  /// The RAM disk's rows of `memmap -j`, the highest first: first and last address.
  private func disk(_ log: Boot.Log) -> [(first: UInt64, last: UInt64)] {
    log.rows("memmap").filter { $0["firmware"] as? String == "RAM disk" }.compactMap { row in
      guard let first = address(row["from"]), let last = address(row["to"]) else { return nil }
      return (first, last)
    }.sorted { $0.first > $1.first }
  }

  private func address(_ value: Any?) -> UInt64? {
    guard let text = value as? String else { return nil }
    return UInt64(text.replacingOccurrences(of: "_", with: "").dropFirst(2), radix: 16)
  }

  private func bytes(_ disk: [(first: UInt64, last: UInt64)]) -> UInt64 {
    disk.reduce(0) { $0 + $1.last - $1.first + 1 }
  }

  /// Roles and memmap agree, the disk has `size` bytes, and each end of each extent is in the direct map.
  private func hasDisk(
    _ size: UInt64, _ boot: Boot, file: StaticString = #filePath, line: UInt = #line
  ) throws -> [(first: UInt64, last: UInt64)] {
    let log = try boot.run("memmap -j; frames -j; sysctl -j swap.ramdisk; pagetable -j; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text, file: file, line: line)
    let disk = disk(log)
    XCTAssertEqual(bytes(disk), size, log.text, file: file, line: line)
    XCTAssertEqual(log.rows("sysctl").first?["value"] as? UInt64, size, log.text, file: file, line: line)
    let taken = log.rows("memmap").compactMap { $0["taken"] as? Int }.reduce(0, +)
    let roles = log.rows("frames").compactMap { $0["frames"] as? Int }.reduce(0, +)
    XCTAssertGreaterThan(taken, 0, file: file, line: line)
    XCTAssertEqual(taken, roles, log.text, file: file, line: line)
    let mappings = log.rows("mapping")
    for extent in disk {
      XCTAssertGreaterThanOrEqual(extent.first, 16 << 20, file: file, line: line)
      XCTAssertEqual(extent.first % 4096, 0, file: file, line: line)
      for place in [extent.first, extent.last] {
        let isMapped = mappings.contains { row in
          guard let from = address(row["from"]), let to = address(row["to"]),
            let bytes = row["bytes"] as? UInt64
          else { return false }
          return place >= to && place - to < bytes && from == 0xffff_8000_0000_0000 + to
            && row["rights"] as? String == "read-write"
        }
        XCTAssertTrue(isMapped, "\(String(place, radix: 16)) in\n\(log.text)", file: file, line: line)
      }
    }
    return disk
  }

  private func sparse(_ size: String, _ boot: Boot) -> Boot {
    var boot = boot
    boot.memory = size
    boot.extra += [
      "-object", "memory-backend-ram,id=m,size=\(size),reserve=off", "-machine", "memory-backend=m",
    ]
    return boot
  }

  func testARAMDiskLiesAtTheTopOfASmallMachine() throws {
    for loader in [Boot.Loader.pvh, .grub] {
      let disk = try hasDisk(64 << 20, Boot(loader: loader, memory: "320M", line: "swap.ramdisk=64M"))
      XCTAssertEqual(disk.count, 1)
      XCTAssertGreaterThan(disk[0].last, 319 << 20)
    }
  }

  func testALargeDiskLiesOnBothSidesOfTheWindowBelow4GiB() throws {
    let disk = try hasDisk(3 << 30, sparse("4G", Boot(line: "swap.ramdisk=3G")))
    XCTAssertEqual(disk.count, 2)
    XCTAssertEqual(disk[0].first, 4 << 30)
    XCTAssertEqual(disk[0].last, 5 << 30 - 1)
    XCTAssertEqual(bytes([disk[1]]), 2 << 30)
  }

  /// QEMU puts a module near the top of memory, GRUB behind the image: it stays.
  func testAModuleStaysAndCanBeRead() throws {
    for loader in [Boot.Loader.pvh, .grub] {
      var boot = Boot(loader: loader, memory: "320M", module: Boot.sample)
      boot.line = "swap.ramdisk=64M"
      _ = try hasDisk(64 << 20, boot)
      let log = try boot.run("replay -j")
      XCTAssertEqual(log.status, Boot.Status.success, log.text)
    }
  }

  func testTheWhatisCommandNamesAnAddressInTheRAMDisk() throws {
    let boot = Boot(memory: "320M", line: "swap.ramdisk=64M")
    let disk = disk(try boot.run("memmap -j"))
    let first = try XCTUnwrap(disk.first?.first)
    let commands = [
      first, first + 64 << 20 - 1, 0xffff_8000_0000_0000 + first,
    ].map { "whatis 0x\(String($0, radix: 16))" }
    let log = try boot.run("memmap; \(commands.joined(separator: "; "))")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
    XCTAssertTrue(log.text.contains("RAM disk\n"), log.text)
    XCTAssertEqual(log.text.components(separatedBy: "of 64 MiB of the RAM disk").count, 1, log.text)
    XCTAssertEqual(log.text.components(separatedBy: "into 64 MiB of the RAM disk").count, 4, log.text)
    XCTAssertEqual(log.text.components(separatedBy: "read-write, write-back").count, 4, log.text)
    for line in log.text.split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80, String(line)) }
  }

  func testTheSizeOfTheRAMDiskCanBeReadAndNotSet() throws {
    let log = try Boot(memory: "320M", line: "swap.ramdisk=64M").run("sysctl swap.ramdisk=128M")
    XCTAssertEqual(log.status, Boot.Status.failed, log.text)
    XCTAssertTrue(log.text.contains("swap.ramdisk is a statistic"), log.text)
    for line in ["", "swap.ramdisk=0"] {
      let none = try Boot(line: line).run("sysctl -j swap.ramdisk; memmap")
      XCTAssertEqual(none.status, Boot.Status.success, none.text)
      XCTAssertEqual(none.rows("sysctl").first?["value"] as? UInt64, 0, none.text)
      XCTAssertFalse(none.text.contains("RAM disk"), none.text)
    }
  }

  func testARAMDiskThatDoesNotFitIsRefusedWithAReason() throws {
    let cases = [
      ("swap.ramdisk=256M", "less than 16 MiB would be left"),
      ("swap.ramdisk=99T", "less than 16 MiB would be left"), ("swap.ramdisk=64Q", "no unit"),
      ("swap.ramdisk=much", "no number"), ("swap.ramdisk", "a number is missing"),
      ("vm.first_64k=maybe", "vm.first_64k: its value is neither on nor off"),
    ]
    for (line, words) in cases {
      let log = try Boot(line: line).run("memmap")
      XCTAssertEqual(log.status, Boot.Status.stopped, log.text)
      XCTAssertTrue(log.text.contains("a machine that Strata refuses"), log.text)
      XCTAssertTrue(log.text.replacingOccurrences(of: "\n            ", with: " ").contains(words), log.text)
      for line in log.text.split(separator: "\n") { XCTAssertLessThanOrEqual(line.count, 80, String(line)) }
    }
    // The memory that remains is just enough.
    let log = try Boot(memory: "64M", line: "swap.ramdisk=46M").run("frames; selftest invariants")
    XCTAssertEqual(log.status, Boot.Status.success, log.text)
  }
}
