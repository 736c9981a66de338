; memset, memcpy, memmove: the only functions that the compiler may call without being asked to.
;
; Whole words first, then the bytes that are left: an emulator counts one instruction a unit.

bits 64

global memset, memcpy, memmove

section .text.memset progbits alloc exec nowrite align=16
memset:
        mov r8, rdi
        mov rcx, rdx
        movzx eax, sil
        mov r9, 0x0101010101010101
        imul rax, r9
        shr rcx, 3
        rep stosq
        mov ecx, edx
        and ecx, 7
        rep stosb
        mov rax, r8
        ret

section .text.memcpy progbits alloc exec nowrite align=16
memmove:
        mov rax, rdi
        sub rax, rsi
        cmp rax, rdx
        jb memmove_backwards                         ; the destination begins inside the source
memcpy:
        mov rax, rdi
        mov rcx, rdx
        shr rcx, 3
        rep movsq
        mov ecx, edx
        and ecx, 7
        rep movsb
        ret

memmove_backwards:
        mov rax, rdi
        lea rdi, [rdi + rdx - 1]
        lea rsi, [rsi + rdx - 1]
        mov ecx, edx
        and ecx, 7
        std
        rep movsb
        sub rdi, 7
        sub rsi, 7
        mov rcx, rdx
        shr rcx, 3
        rep movsq
        cld
        ret
