// The kernel's command line: `run="COMMAND; COMMAND"`, `color=0`, `swap.ramdisk=SIZE`, `vm.first_64k=on`, and
// `NAME=VALUE` for any tunable.
//
// QEMU hands it over as typed. GRUB passes a word that holds blanks quoted as a whole, `"run=A; B"`,
// with backslashes before `\`, `'` and `"`, and one without blanks bare. Both mean the same here.

import MemoryPrimitives

/// The words of the kernel command line. Reads the line in place, which must outlive it.
package struct KernelCommandLine {
  let line: UnsafeBufferPointer<UInt8>

  /// Makes a reader of `line`, which must outlive it.
  package init(_ line: UnsafeBufferPointer<UInt8>) { self.line = line }

  /// Calls `body` with each word, taken apart at its first `=`; quotes are gone. A word without one has
  /// no value. A line is at most 2048 bytes long, and so is a word.
  package func forEachWord(
    _ body: (_ name: UnsafeBufferPointer<UInt8>, _ value: UnsafeBufferPointer<UInt8>?) -> Void
  ) {
    // In place: a temporary allocation of more than 1024 bytes would come from an allocator.
    var storage = InlineArray<2048, UInt8>(repeating: 0)
    withUnsafeMutablePointer(to: &storage) { storage in
      let buffer = UnsafeMutableRawPointer(storage).assumingMemoryBound(to: UInt8.self)
      var i = 0
      while true {
        while i < line.count && line[i] <= 0x20 { i += 1 }
        guard i < line.count else { return }
        var used = 0
        var quote: UInt8 = 0
        while i < line.count {
          var byte = line[i]
          if quote == 0 && byte <= 0x20 { break }
          i += 1
          if quote != 0 && byte == quote {
            quote = 0
            continue
          }
          if quote == 0 && (byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'")) {
            quote = byte
            continue
          }
          if byte == UInt8(ascii: "\\") && i < line.count && Self.isEscaped(line[i]) {
            byte = line[i]
            i += 1
          }
          precondition(used < 2048, "a command line that is longer than any")
          buffer[used] = byte
          used += 1
        }
        let word = UnsafeBufferPointer(start: UnsafePointer(buffer), count: used)
        var equals = 0
        while equals < used && word[equals] != UInt8(ascii: "=") { equals += 1 }
        if equals == used {
          body(word, nil)
        } else {
          body(Bytes(rebasing: word[0..<equals]), Bytes(rebasing: word[(equals + 1)...]))
        }
      }
    }
  }

  /// The value of `name=SIZE`.
  package enum AskedSize {
    case none
    case size(ByteCount)
    /// The value is no size, for this reason.
    case unreadable(StaticString)
  }

  /// The value of `name=SIZE`, spelled as the console takes sizes; that of the last, if there are several.
  package func size(of name: StaticString) -> AskedSize {
    var asked = AskedSize.none
    forEachWord { word, value in
      guard word == name else { return }
      do throws(FigureError) {
        asked = .size(try Figures.size(value ?? Bytes(start: nil, count: 0)))
      } catch {
        asked = .unreadable(error.description)
      }
    }
    return asked
  }

  /// The value of `name=on` or `name=off`.
  package enum AskedSwitch { case none, on, off, unreadable }

  /// The value of `name=on` or `name=off`; that of the last, if there are several.
  package func switching(of name: StaticString) -> AskedSwitch {
    var asked = AskedSwitch.none
    forEachWord { word, value in
      guard word == name else { return }
      asked = .unreadable
      guard let value else { return }
      if value == "on" || value == "1" { asked = .on }
      if value == "off" || value == "0" { asked = .off }
    }
    return asked
  }

  /// Whether the word is read at boot, and so names no tunable. The statistics have the outcome of `swap.ramdisk` and
  /// `vm.first_64k`, read only.
  static func isForBoot(_ name: Bytes) -> Bool {
    name == "run" || name == "color" || name == "swap.ramdisk" || name == "vm.first_64k"
  }

  private static func isEscaped(_ byte: UInt8) -> Bool {
    byte == UInt8(ascii: "\\") || byte == UInt8(ascii: "'") || byte == UInt8(ascii: "\"")
  }

  /// Whether `run=` was given: then no person sits at a terminal.
  package var hasRun: Bool {
    var found = false
    forEachWord { name, value in if name == "run" && value != nil { found = true } }
    return found
  }

  /// Whether `color=0` was not given.
  package var wantsColor: Bool {
    var wanted = true
    forEachWord { name, value in
      if name == "color", let value { wanted = !(value == "0") }
    }
    return wanted
  }

  /// Calls `body` with each command of `run=`, blanks around it gone, until `body` answers false.
  package func forEachCommand(_ body: (UnsafeBufferPointer<UInt8>) -> Bool) {
    var goes = true
    forEachWord { name, value in
      guard name == "run", let value, goes else { return }
      goes = Self.split(value, body)
    }
  }

  /// Calls `body` with each part of `list` between semicolons outside of quotes. False when `body` ended it.
  static func split(_ list: Bytes, _ body: (Bytes) -> Bool) -> Bool {
    var i = 0
    while i < list.count {
      var end = i
      var quote: UInt8 = 0
      while end < list.count && (quote != 0 || list[end] != UInt8(ascii: ";")) {
        let byte = list[end]
        if quote != 0 {
          if byte == quote { quote = 0 }
        } else if byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'") {
          quote = byte
        }
        end += 1
      }
      var (from, to) = (i, end)
      while from < to && list[from] <= 0x20 { from += 1 }
      while to > from && list[to - 1] <= 0x20 { to -= 1 }
      if from < to && !body(Bytes(rebasing: list[from..<to])) { return false }
      i = end + 1
    }
    return true
  }
}
